//! Numbers for values that are used more than once.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Gives equal values one number and counts who uses it. A number is not given to another value later.
#[derive(Debug, Clone)]
pub struct Interner<T> {
    numbers: HashMap<T, u32>,
    values: BTreeMap<u32, (T, usize)>,
    next: u32,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), values: BTreeMap::new(), next: 1 }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    /// The number of a value, from 1, with one user more; `true` when the value is new.
    pub fn take(&mut self, value: &T) -> (u32, bool) {
        if let Some(number) = self.numbers.get(value) {
            if let Some((_, users)) = self.values.get_mut(number) {
                *users += 1;
            }
            return (*number, false);
        }
        let number = self.next;
        // At a million a second this lasts an hour; the numbers begin anew long before, with the next space.
        self.next = self.next.wrapping_add(1).max(1);
        self.numbers.insert(value.clone(), number);
        self.values.insert(number, (value.clone(), 1));
        (number, true)
    }

    /// One user less. Returns the value when it was the last; it is forgotten.
    pub fn give_back(&mut self, number: u32) -> Option<T> {
        let (_, users) = self.values.get_mut(&number)?;
        *users -= 1;
        if *users > 0 {
            return None;
        }
        let (value, _) = self.values.remove(&number)?;
        self.numbers.remove(&value);
        Some(value)
    }

    /// The value of a number.
    pub fn get(&self, number: u32) -> Option<&T> {
        self.values.get(&number).map(|(value, _)| value)
    }

    /// All values, by their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.values.iter().map(|(number, (value, _))| (*number, value))
    }
}
