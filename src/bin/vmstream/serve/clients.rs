//! Clients: whom a request comes from, how often one may send, and how many there were lately.
//!
//! A client is an address; of IPv6 the first 64 bits, since whoever has one such address has all that follow. Where it is
//! kept, with the sessions that it sent, it is a keyed hash of which the key never leaves this directory: sessions of one
//! client can be told to be of one, and not whose they are. All tables are bounded; in a full one the oldest entry goes.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmstream::error::{Error, Result};

/// Most clients that are remembered, of some 50 bytes each.
const CLIENTS_MAX: usize = 4096;
/// How long a client that is gone still counts as recent.
pub const RECENT: Duration = Duration::from_secs(900);

/// What of an address tells clients apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(u64, bool);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(v4.to_bits()), false),
            IpAddr::V6(v6) => Self((v6.to_bits() >> 64) as u64, true),
        }
    }
}

/// The key that hides clients; made when there is none.
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Reads the key at `path`, or makes one there that its owner alone can read.
    pub fn load(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(format_args!("cannot keep the key of the clients in {}", path.display()), e);
        let mut key = [0; 32];
        match std::fs::File::open(path) {
            Ok(mut file) => file.read_exact(&mut key).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::File::open("/dev/urandom")
                    .and_then(|mut random| random.read_exact(&mut key))
                    .map_err(failed)?;
                // Under another name first, so that a crash leaves no half of a key.
                let beside = path.with_extension("new");
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let written = options.open(&beside).and_then(|mut file| file.write_all(&key));
                written.and_then(|()| std::fs::rename(&beside, path)).map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
        }
        Ok(Self(key))
    }

    /// What a client is called in names of files: 12 hexadecimal digits. `token` is the number of its token where several
    /// tell clients apart.
    pub fn name(&self, address: Address, token: Option<usize>) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        match token {
            Some(number) => hasher.update(b"token").update(&(number as u64).to_le_bytes()),
            None => hasher.update(&[u8::from(address.1)]).update(&address.0.to_le_bytes()),
        };
        hasher.finalize().to_hex()[..12].to_owned()
    }
}

/// A lock that outlives a panic: no table is left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes room for one more.
fn make_room<V>(table: &mut HashMap<Address, V>, moment: impl Fn(&V) -> Instant) {
    while table.len() >= CLIENTS_MAX {
        let Some(oldest) = table.iter().min_by_key(|(_, value)| moment(value)).map(|(key, _)| *key) else { break };
        table.remove(&oldest);
    }
}

/// How often clients may send: so many at once, and as many again in each minute.
#[derive(Debug)]
pub struct Rates {
    per_minute: u32,
    table: Mutex<HashMap<Address, (f64, Instant)>>,
}

impl Rates {
    /// At most so many a minute for each client.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, table: Mutex::default() }
    }

    /// Counts a request at `now`; the error is how long to wait for the next.
    pub fn take(&self, client: Address, now: Instant) -> std::result::Result<(), Duration> {
        let full = f64::from(self.per_minute);
        let mut table = lock(&self.table);
        if !table.contains_key(&client) {
            make_room(&mut table, |entry| entry.1);
        }
        let (left, last) = table.entry(client).or_insert((full, now));
        let gained = now.saturating_duration_since(*last).as_secs_f64() * full / 60.0;
        (*left, *last) = ((*left + gained).min(full), now);
        if *left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - *left) * 60.0 / full));
        }
        *left -= 1.0;
        Ok(())
    }
}

/// How many things of one client may be under way at once.
#[derive(Debug)]
pub struct Turns {
    max: usize,
    taken: Mutex<HashMap<Address, usize>>,
}

/// One of them; it ends when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    client: Address,
}

impl Turns {
    /// At most so many of each client.
    pub fn new(max: usize) -> Self {
        Self { max, taken: Mutex::default() }
    }

    /// One more of this client; `None` when it has as many as it may. The table has only who is here, so it is bounded by the
    /// connections.
    pub fn take(&self, client: Address) -> Option<Turn<'_>> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(client).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Turn { turns: self, client })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut taken = lock(&self.turns.taken);
        if let Some(count) = taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

/// The clients that are connected, or were a short while ago.
#[derive(Debug, Default)]
pub struct Recent {
    table: Mutex<HashMap<Address, (u32, Instant)>>,
}

impl Recent {
    /// A connection of a client begins.
    pub fn came(&self, client: Address, now: Instant) {
        let mut table = lock(&self.table);
        if !table.contains_key(&client) {
            make_room(&mut table, |entry| entry.1);
        }
        let (open, last) = table.entry(client).or_insert((0, now));
        (*open, *last) = (*open + 1, now);
    }

    /// It ends.
    pub fn went(&self, client: Address, now: Instant) {
        if let Some((open, last)) = lock(&self.table).get_mut(&client) {
            (*open, *last) = (open.saturating_sub(1), now);
        }
    }

    /// How many clients there are and were lately.
    pub fn count(&self, now: Instant) -> usize {
        let mut table = lock(&self.table);
        table.retain(|_, (open, last)| *open > 0 || now.saturating_duration_since(*last) < RECENT);
        table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("::a00:1"));
    }

    #[test]
    fn a_key_stays_and_hides() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = Key::load(&path).unwrap().name(address("10.0.0.1"), None);
        let key = Key::load(&path).unwrap();
        assert_eq!((first.len(), key.name(address("10.0.0.1"), None)), (12, first.clone()));
        let others = [key.name(address("10.0.0.2"), None), key.name(address("10.0.0.1"), Some(0))];
        assert!(!others.contains(&first) && others[0] != others[1]);
        let other = Key::load(&dir.path().join("other")).unwrap();
        assert_ne!(other.name(address("10.0.0.1"), None), first);
    }

    #[test]
    fn a_rate_is_a_burst_and_a_flow_for_each_client() {
        let rates = Rates::new(3);
        let (a, b, start) = (address("10.0.0.1"), address("10.0.0.2"), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert!((0..3).all(|_| rates.take(a, at(0)).is_ok()));
        let wait = rates.take(a, at(0)).unwrap_err();
        assert!((19.0..21.0).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(rates.take(b, at(0)).is_ok(), "another client");
        assert!(rates.take(a, at(21)).is_ok() && rates.take(a, at(21)).is_err());
    }

    #[test]
    fn a_client_has_so_many_turns_at_once_and_no_more() {
        let (turns, a) = (Turns::new(2), address("10.0.0.1"));
        let (first, _second) = (turns.take(a), turns.take(a));
        assert!(turns.take(a).is_none() && turns.take(address("10.0.0.2")).is_some());
        drop(first);
        assert!(turns.take(a).is_some());
        assert_eq!(lock(&turns.taken).len(), 1, "who is gone is forgotten");
    }

    #[test]
    fn tables_stay_bounded() {
        let (rates, recent, start) = (Rates::new(1), Recent::default(), Instant::now());
        for n in 0..2 * CLIENTS_MAX as u64 {
            let _ = rates.take(Address(n, false), start + Duration::from_millis(n));
            recent.came(Address(n, false), start);
        }
        assert_eq!((lock(&rates.table).len(), lock(&recent.table).len()), (CLIENTS_MAX, CLIENTS_MAX));
    }

    #[test]
    fn who_is_gone_counts_for_a_while() {
        let (recent, start) = (Recent::default(), Instant::now());
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        recent.came(a, start);
        recent.came(b, start);
        recent.went(b, start);
        assert_eq!(recent.count(start), 2);
        assert_eq!(recent.count(start + RECENT), 1, "one is still connected");
        recent.went(a, start + RECENT);
        assert_eq!(recent.count(start + 2 * RECENT), 0);
    }
}
