//! A set of a few things, as small as it can be: there is one for each pod, and a node of a tree is two hundred bytes.

/// Sorted, each once, and no room for more.
#[derive(Debug)]
pub(super) struct Few<T>(Box<[T]>);

impl<T> Default for Few<T> {
    fn default() -> Few<T> {
        Few(Box::default())
    }
}

impl<T: Ord> Few<T> {
    pub(super) fn insert(&mut self, it: T) {
        if let Err(at) = self.0.binary_search(&it) {
            let mut all = std::mem::take(&mut self.0).into_vec();
            all.reserve_exact(1);
            all.insert(at, it);
            self.0 = all.into_boxed_slice();
        }
    }

    pub(super) fn remove(&mut self, it: &T) {
        if let Ok(at) = self.0.binary_search(it) {
            let mut all = std::mem::take(&mut self.0).into_vec();
            all.remove(at);
            self.0 = all.into_boxed_slice();
        }
    }

    pub(super) fn contains(&self, it: &T) -> bool {
        self.0.binary_search(it).is_ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once_and_in_order() {
        let mut few = Few::default();
        [3, 1, 2, 3, 1].into_iter().for_each(|it| few.insert(it));
        assert_eq!(few.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
        few.remove(&2);
        few.remove(&7);
        assert!(few.contains(&1) && !few.contains(&2));
        few.remove(&1);
        few.remove(&3);
        assert!(few.is_empty());
    }
}
