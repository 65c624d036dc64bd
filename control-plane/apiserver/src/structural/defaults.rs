//! Defaults of schemas, and nulls that stand for nothing.

use super::Structural;
use serde_json::Value;

impl Structural {
    /// Sets what is missing, and what is null but must not be, to its default.
    pub(crate) fn apply_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, property) in &self.properties {
                    let Some(default) = &property.default else { continue };
                    let member = map.get(&**name);
                    if member.is_none_or(|member| property.is_void(member)) {
                        map.insert(name.to_string(), default.clone());
                    }
                }
                for (name, member) in map {
                    if let Some(property) = self.properties.get(name.as_str()) {
                        property.apply_defaults(member);
                    } else if let Some(inner) = self.additional_schema() {
                        inner.default_item(member);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(inner) = &self.items {
                    items.iter_mut().for_each(|item| inner.default_item(item));
                }
            }
            _ => {}
        }
    }

    fn default_item(&self, value: &mut Value) {
        if self.is_void(value) {
            *value = self.default.clone().unwrap_or_default();
        }
        self.apply_defaults(value);
    }

    /// A null where the schema allows none.
    fn is_void(&self, value: &Value) -> bool {
        value.is_null() && !self.nullable
    }

    /// Removes members that are null, must not be, and have no default.
    pub(crate) fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(map) => map.retain(|name, member| {
                let Some(schema) = self.property(name) else { return true };
                if schema.is_void(member) && schema.default.is_none() {
                    return false;
                }
                schema.drop_nulls(member);
                true
            }),
            Value::Array(items) => {
                if let Some(inner) = &self.items {
                    items.iter_mut().for_each(|item| inner.drop_nulls(item));
                }
            }
            _ => {}
        }
    }
}
