//! What carries bytes and connections: counted tokens, and a stream socket's queue.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// How many copies of each connection are open, anywhere.
pub(crate) type Open = Rc<RefCell<BTreeMap<u64, u32>>>;

/// One open copy of a connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    open: Open,
}

impl Conn {
    pub(crate) fn new(id: u64, open: &Open) -> Conn {
        *open.borrow_mut().entry(id).or_default() += 1;
        Conn { id, open: Rc::clone(open) }
    }

    /// What passing it over a channel does.
    pub(crate) fn dup(&self) -> Conn {
        Conn::new(self.id, &self.open)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let mut open = self.open.borrow_mut();
        let count = open.get_mut(&self.id).expect("closed more often than opened");
        *count -= 1;
        if *count == 0 {
            open.remove(&self.id);
        }
    }
}

/// Splitmix: the same seed, the same story.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    pub(crate) fn percent(&mut self, p: usize) -> bool {
        self.below(100) < p
    }
}

/// One direction of a channel: segments, each with at most one handle on its first byte.
#[derive(Default)]
pub(crate) struct Pipe(VecDeque<(Vec<u8>, Option<Conn>)>);

impl Pipe {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn write(&mut self, bytes: Vec<u8>, handle: Option<Conn>) {
        self.0.push_back((bytes, handle));
    }

    /// One read of at most `room` bytes: it ends behind a segment that has a handle.
    pub(crate) fn read(&mut self, mut room: usize) -> (Vec<u8>, Option<Conn>) {
        let (mut chunk, mut got) = (Vec::new(), None);
        while room > 0 && got.is_none() {
            let Some((bytes, handle)) = self.0.front_mut() else { break };
            got = handle.take();
            let n = room.min(bytes.len());
            chunk.extend(bytes.drain(..n));
            room -= n;
            if bytes.is_empty() {
                self.0.pop_front();
            }
        }
        (chunk, got)
    }
}
