//! Connections on the peer port that have not said who they are: so many at a time, and nobody who
//! opens many keeps others out.
//!
//! Plain values on the control thread. The rule: one more than there is room for pushes out the
//! oldest of the address that has most of them, the newcomer counted. Whoever floods the port from
//! one address pushes out himself; from many addresses he has to be faster than a handshake.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use tokio::sync::Notify;

/// All that wait, by their order of arrival.
#[derive(Debug)]
pub(super) struct Pending {
    most: usize,
    next: u64,
    waiting: BTreeMap<u64, (IpAddr, Rc<Notify>)>,
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pending: Rc<RefCell<Pending>>,
    number: u64,
    pushed_out: Rc<Notify>,
}

impl Pending {
    /// Room for so many.
    pub(super) fn new(most: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { most, next: 0, waiting: BTreeMap::new() }))
    }

    /// Which one has to go: the oldest of the address that has most.
    fn victim(&self) -> Option<u64> {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        for (address, _) in self.waiting.values() {
            *counts.entry(*address).or_default() += 1;
        }
        let most = counts.values().max()?;
        let mut waiting = self.waiting.iter();
        waiting.find(|(_, (address, _))| counts[address] == *most).map(|(number, _)| *number)
    }
}

impl Place {
    /// Takes a place for a connection from `address`, if need be from another one.
    pub(super) fn take(pending: &Rc<RefCell<Pending>>, address: IpAddr) -> Self {
        let pushed_out = Rc::new(Notify::new());
        let mut all = pending.borrow_mut();
        let number = all.next;
        all.next += 1;
        all.waiting.insert(number, (address, Rc::clone(&pushed_out)));
        if all.waiting.len() > all.most
            && let Some(victim) = all.victim()
            && let Some((_, told)) = all.waiting.remove(&victim)
        {
            told.notify_one();
        }
        Self { pending: Rc::clone(pending), number, pushed_out }
    }

    /// Waits until another one has taken the place.
    pub(super) async fn is_taken(&self) {
        self.pushed_out.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.borrow_mut().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    fn from(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn who_opens_many_pushes_out_himself() {
        let pending = Pending::new(4);
        let quiet = Place::take(&pending, from(1));
        let flood: Vec<Place> = (0..20).map(|_| Place::take(&pending, from(2))).collect();
        assert!(!is_ready(quiet.is_taken()));
        let gone = |places: &[Place]| places.iter().filter(|it| is_ready(it.is_taken())).count();
        assert_eq!((gone(&flood[..17]), gone(&flood[17..])), (17, 0), "the oldest go");
        assert_eq!(pending.borrow().waiting.len(), 4);
    }

    #[test]
    fn a_place_that_was_left_is_free_and_one_that_was_taken_is_left_once() {
        let pending = Pending::new(2);
        let [first, second] = [1, 2].map(|last| Place::take(&pending, from(last)));
        drop(second);
        let third = Place::take(&pending, from(3));
        assert!(!is_ready(first.is_taken()) && !is_ready(third.is_taken()));
        let fourth = Place::take(&pending, from(4));
        assert!(is_ready(first.is_taken()), "all have one: the oldest goes");
        drop(first);
        assert_eq!(pending.borrow().waiting.len(), 2);
        drop((third, fourth));
        assert!(pending.borrow().waiting.is_empty());
    }
}
