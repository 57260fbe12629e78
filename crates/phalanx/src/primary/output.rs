//! What workers print, line by line.

use crate::builder::{Line, Output};
use crate::watch::watch;
use phalanx_core::{Slot, WorkerId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Lines that are kept of each slot.
const KEPT: usize = 20;
/// A line is cut here.
const LONGEST: usize = 16 * 1024;

/// The last lines of one slot.
pub(super) type Tail = Rc<RefCell<VecDeque<String>>>;

/// Reads a worker's pipe to its end. The pipe is always read, so that a worker never blocks on it.
pub(super) async fn read(
    pipe: OwnedFd,
    worker: WorkerId,
    slot: Slot,
    is_stderr: bool,
    output: Output,
    tail: Tail,
) {
    let Ok(pipe) = watch(pipe, tokio::io::Interest::READABLE) else { return };
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = [0u8; 8192];
    let emit = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        let text: String =
            text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        if let Output::Lines(tell) = &output {
            tell(&Line { worker, slot, is_stderr, text: &text });
        }
        let mut tail = tail.borrow_mut();
        if tail.len() == KEPT {
            tail.pop_front();
        }
        tail.push_back(text);
        line.clear();
    };
    loop {
        let Ok(mut ready) = pipe.readable().await else { return };
        let read = ready.try_io(|pipe| read_some(pipe.get_ref(), &mut buffer));
        let Ok(read) = read else { continue };
        let Ok(count @ 1..) = read else { break };
        for &byte in &buffer[..count] {
            match byte {
                b'\n' => emit(&mut line),
                _ if line.len() < LONGEST => line.push(byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        emit(&mut line);
    }
}

fn read_some(fd: impl AsFd, buffer: &mut [u8]) -> std::io::Result<usize> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    std::io::Read::read(&mut std::fs::File::from(fd), buffer)
}
