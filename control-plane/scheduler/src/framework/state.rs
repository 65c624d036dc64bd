//! What plugins remember within one scheduling cycle.

use super::{PluginId, PluginSet};
use std::any::Any;

/// Data a plugin keeps for one cycle.
trait Data: Any + Send + Sync {
    fn clone_box(&self) -> Box<dyn Data>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<T: Any + Clone + Send + Sync> Data for T {
    fn clone_box(&self) -> Box<dyn Data> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// State of one scheduling cycle: one value per type, cloned to try out evictions.
#[derive(Default)]
pub struct CycleState {
    data: Vec<Box<dyn Data>>,
    /// Plugins whose filter need not run.
    pub(super) skip_filter: PluginSet,
    /// Plugins whose score need not run.
    pub(super) skip_score: PluginSet,
}

impl CycleState {
    /// Keeps a value; an earlier one of the type is replaced.
    pub fn put<T: Any + Clone + Send + Sync>(&mut self, value: T) {
        match self.get_mut::<T>() {
            Some(old) => *old = value,
            None => self.data.push(Box::new(value)),
        }
    }

    /// The value of a type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        // `as_ref` reaches the value: the box itself is `Any` too.
        self.data.iter().find_map(|d| d.as_ref().as_any().downcast_ref())
    }

    /// The value of a type, to be changed.
    pub fn get_mut<T: Any>(&mut self) -> Option<&mut T> {
        self.data.iter_mut().find_map(|d| d.as_mut().as_any_mut().downcast_mut())
    }

    /// Whether a plugin's filter is skipped in this cycle.
    pub fn skips_filter(&self, plugin: PluginId) -> bool {
        self.skip_filter.contains(plugin)
    }
}

impl Clone for CycleState {
    fn clone(&self) -> Self {
        Self {
            data: self.data.iter().map(|d| d.as_ref().clone_box()).collect(),
            skip_filter: self.skip_filter,
            skip_score: self.skip_score,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_one_value_a_type() {
        let mut state = CycleState::default();
        state.put(1u8);
        state.put("text".to_owned());
        state.put(2u8);
        let mut copy = state.clone();
        *copy.get_mut::<u8>().expect("value") = 3;
        assert_eq!((state.get::<u8>(), copy.get::<u8>()), (Some(&2), Some(&3)));
        assert_eq!(copy.get::<String>().map(String::as_str), Some("text"));
        assert_eq!(state.get::<u16>(), None);
    }
}
