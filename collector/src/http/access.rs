//! What happens to every request before its handler: rate limit, credentials, configured headers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use super::{Error, Shared};
use crate::auth::{Check, Decision, Policy, Users};

/// Orchestrators that probe these have no credentials.
const FREE: [&str; 4] = ["/healthz", "/readyz", "/-/healthy", "/-/ready"];

/// Requests that are let through.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// One more every so often.
    pub interval: Duration,
    /// So many at once after a pause.
    pub burst: u32,
}

/// Who may ask for what, and what answers carry.
#[derive(Clone, Debug, Default)]
pub struct AccessConfig {
    /// Who has to name themselves; without any everyone is let in.
    pub users: Users,
    /// Headers of every answer, instead of ours; `None` takes ours away.
    pub headers: Vec<(HeaderName, Option<HeaderValue>)>,
    /// `None` limits nothing.
    pub rate_limit: Option<RateLimit>,
}

/// A configuration at work.
#[derive(Debug)]
pub(super) struct Access {
    policy: Arc<Policy>,
    headers: Vec<(HeaderName, Option<HeaderValue>)>,
    bucket: Option<Bucket>,
    computing: Arc<Computing>,
}

/// Hashes are computed one at a time: guessers get one core at most, and wait for each other.
#[derive(Debug)]
struct Computing {
    turn: Arc<Semaphore>,
    /// Places to wait for a turn: who comes when all are taken is told to come again, or guessers would have everyone wait
    /// for as long as they like.
    places: Arc<Semaphore>,
}

impl Default for Computing {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), places: Arc::new(Semaphore::new(MOST_WAITING)) }
    }
}

/// Requests whose credentials are being verified, at most. A browser opens six connections at once; a hash of the usual
/// cost takes less than 100 ms.
const MOST_WAITING: usize = 16;

impl Access {
    pub(super) fn new(config: AccessConfig) -> Self {
        let policy = Policy::new(config.users.clone());
        Self::with(config, policy, Arc::default())
    }

    /// Another configuration in the place of this one. Who was verified stays so while the hash is the same.
    pub(super) fn replaced(&self, config: AccessConfig) -> Self {
        let policy = self.policy.with_users(config.users.clone());
        Self::with(config, policy, Arc::clone(&self.computing))
    }

    fn with(config: AccessConfig, policy: Policy, computing: Arc<Computing>) -> Self {
        let bucket = config.rate_limit.map(|limit| Bucket::new(limit, Instant::now()));
        Self { policy: Arc::new(policy), headers: config.headers, bucket, computing }
    }

    /// Nobody is let in who has not shown who they are.
    pub(super) fn asks_for_users(&self) -> bool {
        !self.policy.is_open()
    }

    async fn compute(&self, check: Check) -> Result<bool, Error> {
        let Ok(place) = Arc::clone(&self.computing.places).try_acquire_owned() else {
            return Err(Error::Verifying);
        };
        let Ok(turn) = Arc::clone(&self.computing.turn).acquire_owned().await else { return Ok(false) };
        // Eight connections that open at once bring the same credentials; the first has answered for all.
        if let Some(outcome) = self.policy.recall(&check) {
            return Ok(outcome);
        }
        let policy = Arc::clone(&self.policy);
        // A client that goes away takes this future with it, but not the hash, which cannot be interrupted: it keeps its
        // turn until it is through, and its outcome is kept.
        let computed = tokio::task::spawn_blocking(move || {
            let outcome = check.run();
            policy.remember(&check, outcome);
            drop((turn, place));
            outcome
        });
        Ok(computed.await.unwrap_or(false))
    }

    pub(super) fn set_headers(&self, response: &mut Response) {
        for (name, value) in &self.headers {
            match value {
                Some(value) => response.headers_mut().insert(name.clone(), value.clone()),
                None => response.headers_mut().remove(name),
            };
        }
    }
}

/// Comes with a request on a connection beyond the budget.
#[derive(Clone, Debug)]
pub(super) struct Crowded {
    pub(super) refused: Arc<AtomicU64>,
}

/// Lets a request in, or answers it.
pub(super) async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if FREE.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    if let Some(crowded) = request.extensions().get::<Crowded>() {
        crowded.refused.fetch_add(1, Ordering::Relaxed);
        return Error::Crowded.into_response();
    }
    let access = shared.access();
    if access.bucket.as_ref().is_some_and(|bucket| !bucket.take(Instant::now())) {
        return Error::TooManyRequests.into_response();
    }
    let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let allowed = match access.policy.decide(authorization) {
        Decision::Allow => Ok(true),
        Decision::Deny => Ok(false),
        Decision::Unknown(check) => access.compute(check).await,
    };
    match allowed {
        Ok(true) => next.run(request).await,
        Ok(false) => Error::Unauthorized.into_response(),
        Err(error) => error.into_response(),
    }
}

/// A token bucket, kept as the time when it will be full again.
#[derive(Debug)]
struct Bucket {
    limit: RateLimit,
    full_at: Mutex<Instant>,
}

impl Bucket {
    fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, full_at: Mutex::new(now) }
    }

    fn take(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full_at).max(now) + self.limit.interval;
        let allowed = next - now <= self.limit.interval.saturating_mul(self.limit.burst);
        if allowed {
            *full_at = next;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Users;

    #[tokio::test]
    async fn a_hash_keeps_its_turn_though_nobody_waits_for_it() {
        let hash = bcrypt::hash("secret", 10).unwrap();
        let users = Users::new([("alice".to_owned(), hash)].into()).unwrap();
        let access = Access::new(AccessConfig { users, ..AccessConfig::default() });
        // alice:secret
        let decide = || access.policy.decide(Some(b"Basic YWxpY2U6c2VjcmV0"));
        let Decision::Unknown(check) = decide() else { panic!("nobody has verified it") };
        let mut computing = Box::pin(access.compute(check));
        std::future::poll_fn(|context| {
            assert!(computing.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(computing);
        assert_eq!(access.computing.turn.available_permits(), 0);
        assert_eq!(access.computing.places.available_permits(), MOST_WAITING - 1);
        let _turn = access.computing.turn.acquire().await.unwrap();
        assert!(matches!(decide(), Decision::Allow), "what it found is kept");
    }

    #[test]
    fn bucket_gives_a_burst_and_then_one_per_interval() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let bucket = Bucket::new(RateLimit { interval: second, burst: 3 }, start);
        let taken = |at: Duration| (0..10).filter(|_| bucket.take(start + at)).count();
        assert_eq!(taken(Duration::ZERO), 3);
        assert_eq!(taken(second), 1);
        assert_eq!(taken(second * 3 + second / 2), 2);
        assert_eq!(taken(second * 60), 3, "pauses do not add up");
    }
}
