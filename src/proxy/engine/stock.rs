//! Things that a thread keeps for the next time, so that in the long run none is allocated.

use std::cell::RefCell;
use std::thread::LocalKey;

/// A few things of one kind.
pub(super) struct Stock<T: 'static> {
    kept: RefCell<Vec<T>>,
    most: usize,
}

impl<T> Stock<T> {
    /// An empty stock for at most so many.
    pub(super) const fn new(most: usize) -> Stock<T> {
        Stock { kept: RefCell::new(Vec::new()), most }
    }

    /// One that this thread kept. Ends with the thread: then there is none.
    pub(super) fn take(stock: &'static LocalKey<Stock<T>>) -> Option<T> {
        stock.try_with(|stock| stock.kept.borrow_mut().pop()).ok().flatten()
    }

    /// Keeps one, unless there are enough.
    pub(super) fn keep(stock: &'static LocalKey<Stock<T>>, thing: T) {
        // At the end of a thread nobody takes it.
        let _ = stock.try_with(|stock| {
            let mut kept = stock.kept.borrow_mut();
            if kept.len() < stock.most {
                kept.push(thing);
            }
        });
    }
}
