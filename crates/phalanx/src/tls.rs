//! TLS sessions that resume on any worker.
//!
//! ```no_run
//! # fn example(mut config: rustls::ServerConfig) -> Result<(), phalanx::InitError> {
//! config.ticketer = phalanx::tls::ticketer()?;
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use rustls::server::ProducesTickets;

use crate::InitError;
use crate::worker::driver::Command;

/// Seconds that a client may keep a ticket. The primary changes the key every six hours and takes the tickets of the
/// one before.
const LIFETIME: u32 = 6 * 60 * 60;
/// A key as the primary sends it: a name, and the key itself, in hexadecimal.
const NAME: usize = 8;
const KEY: usize = 32;
const NONCE: usize = 12;

static KEYS: RwLock<Vec<Key>> = RwLock::new(Vec::new());

/// What makes and takes session tickets, with keys that all workers share and their primary changes: a session that
/// began on one worker goes on on any other, and after a reload.
///
/// Without a primary the keys are this process's own. Until the primary has sent the keys, and under a primary of
/// Node, which has none, no tickets are made: clients do a whole handshake each time, and nothing fails.
///
/// # Errors
///
/// As [`worker`](crate::worker()); and when the system gives no random bytes.
pub fn ticketer() -> Result<Arc<dyn ProducesTickets>, InitError> {
    match crate::worker()? {
        Some(worker) => worker.tell(Command::TicketKeys),
        None => {
            let mut keys = write();
            if keys.is_empty() {
                keys.extend(phalanx_os::host::random().ok().map(Key::new));
            }
        }
    }
    Ok(Arc::new(Ticketer))
}

/// The primary has sent the keys.
pub(crate) fn renew(keys: &str) {
    let parsed: Option<Vec<Key>> = keys.split(',').map(Key::parse).collect();
    match parsed {
        Some(parsed) => *write() = parsed,
        None => tracing::warn!("the primary has sent ticket keys that are none"),
    }
}

fn write() -> std::sync::RwLockWriteGuard<'static, Vec<Key>> {
    KEYS.write().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Key {
    name: [u8; NAME],
    cipher: ChaCha20Poly1305,
}

impl Key {
    fn new(bytes: [u8; NAME + KEY]) -> Key {
        let (name, key) = bytes.split_at(NAME);
        Key {
            name: name.try_into().expect("so many were split off"),
            cipher: ChaCha20Poly1305::new(key.into()),
        }
    }

    fn parse(text: &str) -> Option<Key> {
        let mut bytes = [0; NAME + KEY];
        if !text.is_ascii() || text.len() != 2 * bytes.len() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Key::new(bytes))
    }

    /// The ticket names its key, and is bound to the name.
    fn seal(&self, state: &[u8]) -> Option<Vec<u8>> {
        let nonce: [u8; NONCE] = phalanx_os::host::random().ok()?;
        let sealed = self.cipher.encrypt(&nonce.into(), Payload { msg: state, aad: &self.name }).ok()?;
        Some([&self.name[..], &nonce, &sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let sealed = ticket.strip_prefix(&self.name[..])?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE)?;
        self.cipher.decrypt(nonce.into(), Payload { msg: sealed, aad: &self.name }).ok()
    }
}

struct Ticketer;

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticketer")
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        KEYS.read().unwrap_or_else(PoisonError::into_inner).first()?.seal(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        KEYS.read().unwrap_or_else(PoisonError::into_inner).iter().find_map(|key| key.open(cipher))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: [u8; NAME + KEY]) -> String {
        key.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn key(n: u8) -> Key {
        Key::parse(&text([n; NAME + KEY])).unwrap()
    }

    #[test]
    fn a_ticket_is_opened_by_its_key_and_by_no_other() {
        let ticket = key(1).seal(b"state").unwrap();
        assert_eq!(key(1).open(&ticket).unwrap(), b"state");
        assert_eq!(key(2).open(&ticket), None);
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert_eq!(key(1).open(&forged), None, "byte {at}");
        }
        assert_eq!(key(1).open(&ticket[..NAME + 3]), None);
        assert_ne!(key(1).seal(b"state"), key(1).seal(b"state"), "never the same twice");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "00", "zz", &"g".repeat(80), &"é".repeat(40)] {
            assert!(Key::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn alone_there_are_keys_at_once_and_after_a_change_the_former_are_good() {
        let ticketer = ticketer().unwrap();
        let ticket = ticketer.encrypt(b"before").unwrap();
        assert_eq!(ticketer.decrypt(&ticket).unwrap(), b"before");
        let (one, two, three) = ([1; NAME + KEY], [2; NAME + KEY], [3; NAME + KEY]);
        renew(&text(one));
        let first = ticketer.encrypt(b"first").unwrap();
        renew(&format!("{},{}", text(two), text(one)));
        assert_eq!(ticketer.decrypt(&first).unwrap(), b"first");
        renew("nonsense");
        assert_eq!(ticketer.decrypt(&first).unwrap(), b"first", "what is no key changes nothing");
        renew(&format!("{},{}", text(three), text(two)));
        assert_eq!(ticketer.decrypt(&first), None, "two changes later it is too old");
    }
}
