//! Fields of inlined messages. JSON spreads them over the object; protobuf keeps them in a message of their own, and that may
//! inline others in turn.

use super::put_message;
use crate::schema::{Field, TypeSchema};

/// What was gathered for the inlined messages of an object: they come last.
#[derive(Default)]
pub(super) struct Apart {
    fields: Vec<u8>,
    /// By their place among the type's inlined ones.
    inlined: Vec<Apart>,
}

impl Apart {
    /// Where a field of an inlined message belongs, as it is known there. `None`: protobuf does not have it.
    pub(super) fn place<'a, 't>(
        &'a mut self,
        ty: &'t TypeSchema,
        name: &str,
    ) -> Option<(&'a mut Vec<u8>, &'t Field)> {
        let messages = ty.inlined.iter().enumerate().filter(|(_, (number, _))| *number > 0);
        let mut homes = messages.map(|(index, (_, inner))| (index, inner.get()));
        let (index, inner, field) =
            homes.find_map(|(index, inner)| Some((index, inner, inner.field(name)?)))?;
        if self.inlined.len() <= index {
            self.inlined.resize_with(ty.inlined.len(), Self::default);
        }
        let part = self.inlined.get_mut(index)?;
        if field.number > 0 { Some((&mut part.fields, field)) } else { part.place(inner, name) }
    }

    /// Writes the inlined messages of `ty`; Go writes empty ones, too.
    pub(super) fn put(&self, out: &mut Vec<u8>, ty: &TypeSchema) {
        let none = Self::default();
        for (index, (number, inner)) in ty.inlined.iter().enumerate().filter(|(_, (number, _))| *number > 0) {
            let part = self.inlined.get(index).unwrap_or(&none);
            put_message(out, *number, |out| {
                out.extend_from_slice(&part.fields);
                part.put(out, inner.get());
            });
        }
    }
}
