//! Who may call: a decision about one request, without IO. Knows names, hashes and what was verified before;
//! nothing of HTTP but the value of an `Authorization` header.
//!
//! Verifying a bcrypt hash takes tens of milliseconds by design. The decision therefore comes in two parts: what is
//! known is answered at once, everything else becomes a [`Check`] that the caller runs where it may take time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use ring::hmac;

/// Outcomes kept. The wrong ones have their own places, so that guessing does not displace the right ones.
const KEPT_RIGHT: usize = 64;
const KEPT_WRONG: usize = 256;

/// What can be wrong with users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Basic authentication cannot carry it.
    #[error("user name {0:?} is empty or has a colon in it")]
    Name(String),
    /// Not a bcrypt hash.
    #[error("the password of user {0:?} is not a bcrypt hash; make one with: htpasswd -nBC 10 \"\"")]
    Hash(String),
    /// A hash that takes too long.
    #[error(
        "the password of user {0:?} has cost {1}, which takes {time} s to verify; {MAX_COST} is the most, 10 is usual",
        time = 1u64 << (*.1 - MAX_COST) << 2
    )]
    Cost(String, u32),
}

/// The most that a hash may cost: some 4 s of a CPU for each password that was not verified before.
const MAX_COST: u32 = 16;

/// Users with their bcrypt hashes.
#[derive(Clone, Default)]
pub struct Users(BTreeMap<String, String>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Users {
    /// Checks form, not strength.
    pub fn new(users: BTreeMap<String, String>) -> Result<Self, Error> {
        for (name, hash) in &users {
            if name.is_empty() || name.contains(':') {
                return Err(Error::Name(name.clone()));
            }
            match bcrypt_cost(hash) {
                None => return Err(Error::Hash(name.clone())),
                Some(cost) if cost > MAX_COST => return Err(Error::Cost(name.clone(), cost)),
                Some(_) => {}
            }
        }
        Ok(Self(users))
    }

    /// Nobody is asked for anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a hash costs; `None` for what is none. Reads every part of it, as the first request would: computed at the
/// lowest cost, which takes about a millisecond.
fn bcrypt_cost(hash: &str) -> Option<u32> {
    const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
    let cost = hash.parse::<bcrypt::HashParts>().ok()?.get_cost();
    let (_, salt_and_hash) = hash.rsplit_once('$')?;
    let sound = COSTS.contains(&cost) && bcrypt::verify("", &format!("$2b$04${salt_and_hash}")).is_ok();
    sound.then_some(cost)
}

/// What to do with a request.
#[derive(Debug)]
pub enum Decision {
    /// Let it in.
    Allow,
    /// Ask for credentials, or for better ones.
    Deny,
    /// Nobody knows yet: run the check, then tell [`Policy::remember`].
    Unknown(Check),
}

/// Decides about requests.
#[derive(Debug, Default)]
pub struct Policy {
    users: Users,
    memory: Arc<Memory>,
}

/// Tags of verified credentials. A tag is a keyed digest: it neither reveals a password nor can anyone who does not
/// know the key choose one, so comparing tags needs no constant time.
struct Memory {
    /// `None` if the kernel gave no random numbers: then nothing is remembered.
    key: Option<hmac::Key>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    right: VecDeque<Tag>,
    wrong: VecDeque<Tag>,
}

type Tag = [u8; 32];

impl Default for Memory {
    fn default() -> Self {
        let random = ring::rand::SystemRandom::new();
        Self { key: hmac::Key::generate(hmac::HMAC_SHA256, &random).ok(), known: Mutex::default() }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Policy {
    /// Starts without memory.
    pub fn new(users: Users) -> Self {
        Self { users, memory: Arc::default() }
    }

    /// For other users, with the memory of this one: outcomes are remembered of a user with a hash, so whoever has the
    /// same hash as before need not be verified again, and everyone else is.
    pub fn with_users(&self, users: Users) -> Self {
        Self { users, memory: Arc::clone(&self.memory) }
    }

    /// Everyone is let in.
    pub fn is_open(&self) -> bool {
        self.users.is_empty()
    }

    /// Judges the value of an `Authorization` header.
    pub fn decide(&self, authorization: Option<&[u8]>) -> Decision {
        if self.is_open() {
            return Decision::Allow;
        }
        let Some((name, password)) = authorization.and_then(basic_credentials) else { return Decision::Deny };
        // A stranger's password is checked as well, against some hash: how long it takes does not tell who exists.
        let own_hash = self.users.0.get(&name);
        let Some(hash) = own_hash.or_else(|| self.users.0.values().next()) else { return Decision::Deny };
        let check = Check {
            tag: self.memory.tag(own_hash.is_some(), &name, hash, &password),
            password,
            hash: hash.clone(),
            user_exists: own_hash.is_some(),
        };
        match self.recall(&check) {
            Some(true) => Decision::Allow,
            Some(false) => Decision::Deny,
            None => Decision::Unknown(check),
        }
    }

    /// What is known of a check by now.
    pub fn recall(&self, check: &Check) -> Option<bool> {
        let tag = check.tag?;
        let known = self.memory.known();
        if known.right.contains(&tag) {
            Some(true)
        } else if known.wrong.contains(&tag) {
            Some(false)
        } else {
            None
        }
    }

    /// Takes the outcome of a check. The oldest outcome of its kind is forgotten.
    pub fn remember(&self, check: &Check, outcome: bool) {
        let Some(tag) = check.tag else { return };
        let mut known = self.memory.known();
        let (tags, most) =
            if outcome { (&mut known.right, KEPT_RIGHT) } else { (&mut known.wrong, KEPT_WRONG) };
        if tags.contains(&tag) {
            return;
        }
        if tags.len() == most {
            tags.pop_front();
        }
        tags.push_back(tag);
    }
}

impl Memory {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user who is gone is a stranger, even to a hash that stands in and is the one that the user had.
    fn tag(&self, user_exists: bool, name: &str, hash: &str, password: &[u8]) -> Option<Tag> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        context.update(&[u8::from(user_exists)]);
        for part in [name.as_bytes(), hash.as_bytes(), password] {
            // With its length, so that no part can pretend to be the end of another.
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().ok()
    }
}

/// A password to be compared with a hash.
pub struct Check {
    tag: Option<Tag>,
    hash: String,
    password: Vec<u8>,
    user_exists: bool,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

impl Check {
    /// Takes tens of milliseconds of CPU, or more where the hash says so. Compares in constant time.
    pub fn run(&self) -> bool {
        bcrypt::verify(&self.password, &self.hash).unwrap_or(false) & self.user_exists
    }
}

/// Reads `Basic <base64 of name:password>` (RFC 7617).
fn basic_credentials(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut name = base64::engine::general_purpose::STANDARD.decode(rest.trim_ascii()).ok()?;
    let colon = name.iter().position(|byte| *byte == b':')?;
    let password = name.split_off(colon + 1);
    name.pop();
    Some((String::from_utf8(name).ok()?, password))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn policy(users: &[(&str, &str)]) -> Policy {
        let hashed = users.iter().map(|(name, password)| {
            ((*name).to_owned(), bcrypt::hash(password, 4).unwrap().replace("$2b$", "$2y$"))
        });
        Policy::new(Users::new(hashed.collect()).unwrap())
    }

    fn basic(credentials: impl AsRef<[u8]>) -> Vec<u8> {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials)).into_bytes()
    }

    /// Decides as a server does. The second part tells whether it had to compute.
    fn ask(policy: &Policy, authorization: &[u8]) -> (bool, bool) {
        match policy.decide(Some(authorization)) {
            Decision::Allow => (true, false),
            Decision::Deny => (false, false),
            Decision::Unknown(check) => {
                let outcome = check.run();
                policy.remember(&check, outcome);
                (outcome, true)
            }
        }
    }

    #[test]
    fn without_users_everyone_is_let_in() {
        assert!(matches!(policy(&[]).decide(None), Decision::Allow));
        assert!(matches!(policy(&[]).decide(Some(b"nonsense")), Decision::Allow));
    }

    #[test]
    fn computes_once_per_credentials() {
        let policy = policy(&[("alice", "se:cret"), ("bob", "other")]);
        assert_eq!(ask(&policy, &basic("alice:se:cret")), (true, true));
        assert_eq!(ask(&policy, &basic("alice:se:cret")), (true, false));
        assert_eq!(ask(&policy, &basic("alice:wrong")), (false, true));
        assert_eq!(ask(&policy, &basic("alice:wrong")), (false, false));
        assert_eq!(ask(&policy, &basic("bob:se:cret")), (false, true), "another's password");
        assert_eq!(ask(&policy, &basic("alice:se:cret")), (true, false));
    }

    #[test]
    fn a_stranger_costs_as_much_and_never_gets_in() {
        let policy = policy(&[("alice", "secret")]);
        // The hash that stands in is alice's: her password alone is not enough.
        assert_eq!(ask(&policy, &basic("mallory:secret")), (false, true));
        assert_eq!(ask(&policy, &basic("mallory:secret")), (false, false));
        assert_eq!(ask(&policy, &basic("alice:secret")), (true, true));
    }

    #[test]
    fn guessing_does_not_displace_who_is_right() {
        let policy = policy(&[("alice", "secret")]);
        ask(&policy, &basic("alice:secret"));
        for guess in 0..2 * KEPT_WRONG {
            if let Decision::Unknown(check) = policy.decide(Some(&basic(format!("alice:{guess}")))) {
                policy.remember(&check, false);
            }
        }
        assert_eq!(ask(&policy, &basic("alice:secret")), (true, false));
        assert_eq!(policy.memory.known().wrong.len(), KEPT_WRONG);
    }

    #[test]
    fn other_users_leave_the_memory_of_those_who_stay_the_same() {
        let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
        let users = |users: &[(&str, &String)]| {
            let users = users.iter().map(|(name, hash)| ((*name).to_owned(), (*hash).clone()));
            Users::new(users.collect()).unwrap()
        };
        let (secret, other) = (hash("secret"), hash("other"));
        let first = Policy::new(users(&[("alice", &secret), ("bob", &secret)]));
        for credentials in ["alice:secret", "bob:secret"] {
            assert_eq!(ask(&first, &basic(credentials)), (true, true));
        }
        assert_eq!(ask(&first, &basic("carol:secret")), (false, true));
        let changed = first.with_users(users(&[("alice", &secret), ("bob", &other), ("carol", &secret)]));
        assert_eq!(ask(&changed, &basic("alice:secret")), (true, false));
        assert_eq!(ask(&changed, &basic("bob:secret")), (false, true), "another hash");
        assert_eq!(ask(&changed, &basic("carol:secret")), (true, true), "was a stranger");
        // Alice's hash, which was also Bob's, stands in for his.
        let without = changed.with_users(users(&[("alice", &secret)]));
        assert_eq!(ask(&without, &basic("bob:secret")), (false, true), "no user any more");
        assert_eq!(ask(&without, &basic("alice:secret")), (true, false));
    }

    #[test]
    fn a_hash_that_takes_too_long_is_refused() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let of_cost = |cost: u32| {
            let hash = hash.replacen("$04$", &format!("${cost:02}$"), 1);
            Users::new([("alice".to_owned(), hash)].into())
        };
        assert!(of_cost(MAX_COST).is_ok());
        let refused = of_cost(20).unwrap_err().to_string();
        assert!(refused.contains("alice") && refused.contains("cost 20, which takes 64 s"), "{refused}");
        assert!(matches!(of_cost(31), Err(Error::Cost(..))));
        assert!(matches!(of_cost(32), Err(Error::Hash(_))));
    }

    #[test]
    fn headers_that_say_nothing_are_denied() {
        let policy = policy(&[("alice", "secret")]);
        assert!(matches!(policy.decide(None), Decision::Deny));
        for header in [
            &b""[..],
            b"Basic",
            b"Basic ",
            b"Basic !!!",
            b"Bearer YWxpY2U6c2VjcmV0",
            b"\xff\xff\xff\xff\xff\xff\xff",
            &basic("alice"),
            &basic([0xff, b':', b'x']),
        ] {
            assert_eq!(ask(&policy, header), (false, false), "{}", header.escape_ascii());
        }
        assert_eq!(ask(&policy, &basic("alice:")), (false, true));
        assert_eq!(ask(&policy, &basic("alice:a\0b")), (false, true));
        let lower = [b"basic  ", &basic("alice:secret")[6..]].concat();
        assert_eq!(ask(&policy, &lower), (true, true), "the scheme has no case");
    }

    #[test]
    fn users_are_checked_and_not_shown() {
        let users = |name: &str, hash: &str| Users::new([(name.to_owned(), hash.to_owned())].into());
        let hash = bcrypt::hash("x", 4).unwrap();
        assert!(!format!("{:?}", users("alice", &hash).unwrap()).contains(&hash));
        assert!(users("", &hash).is_err());
        assert!(users("a:b", &hash).is_err());
        for bad in ["", "secret", "$2y$99$aaaa", "$2y$10$short", &hash[..59]] {
            let error = users("alice", bad).unwrap_err().to_string();
            assert!(error.contains("alice") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
    }
}
