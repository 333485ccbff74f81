//! `/debug/pprof/heap` and `allocs`: what this process has asked for memory for, as Go's own handlers have it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use serde::Deserialize;

use super::pprof::{Allowed, LEAST_SECONDS, MOST_SECONDS, answer, failed, format_of, unknown_target};
use super::{Error, Shared};
use crate::heap::sampled;
use crate::profile::Kind;
use crate::profile::heap::Shown;
use crate::profiler;
use crate::render::pprof;

/// What it is asked for with.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// From now on, instead of since the start.
    seconds: Option<f64>,
    debug: Option<u32>,
    format: Option<String>,
    target: Option<String>,
    // These are of workers.
    pool: Option<String>,
    slot: Option<String>,
    pid: Option<String>,
    /// Has Go collect garbage first. Here what nobody uses is given back at once.
    #[serde(rename = "gc")]
    _gc: Option<String>,
}

impl Parameters {
    /// How long, if not since the start.
    fn duration(&self) -> Result<Option<Duration>, Error> {
        if self.pool.is_some() || self.slot.is_some() || self.pid.is_some() {
            let text = "the heap is that of the collector itself: what workers ask for memory for is not seen from outside; \
                        /api/v1/stats has how much they have";
            return Err(Error::BadRequest(text.into()));
        }
        if let Some(other) = self.target.as_deref().filter(|target| *target != "self") {
            return Err(unknown_target(other));
        }
        match self.seconds {
            None => Ok(None),
            // As Go takes it.
            Some(0.0) => Ok(None),
            Some(seconds) if (LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) => {
                Ok(Some(Duration::from_secs_f64(seconds)))
            }
            Some(seconds) => {
                let text = format!("seconds={seconds} is not from {LEAST_SECONDS} to {MOST_SECONDS}");
                Err(Error::BadRequest(text))
            }
        }
    }
}

/// Requests at a time.
pub(super) const MAX_HEAPS: usize = 4;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What it is now, or in how far it is another after some time.
pub(super) fn heap(shown: Shown) -> MethodRouter<Arc<Shared>> {
    get(
        move |State(shared): State<Arc<Shared>>,
              _: Allowed,
              asked: Result<Query<Parameters>, QueryRejection>| async move {
            take(&shared, shown, asked).await
        },
    )
}

async fn take(
    shared: &Shared,
    shown: Shown,
    asked: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(parameters) = asked.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    let format = format_of(parameters.format.as_deref(), parameters.debug)?;
    let duration = parameters.duration()?;
    // What goes on when its client has gone away counts, too.
    let permit = Arc::clone(&shared.heaps).try_acquire_owned().map_err(|_| Error::ProfilesBusy)?;
    let mut before = None;
    if let Some(duration) = duration {
        before = Some(sampled::heap());
        tokio::time::sleep(duration).await;
    }
    let named = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        // Names take memory for a moment.
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let after = sampled::heap();
        let heap = profiler::heap(before.as_ref(), &after, shown);
        drop((before, after));
        crate::heap::trim();
        heap
    });
    let mut heap = named.await.map_err(|_| Error::ShuttingDown)?.map_err(failed)?;
    heap.profile.duration_ns = duration.map_or(0, |duration| duration.as_nanos() as u64);
    answer(Kind::Heap, format, move || pprof::render_heap(&heap, format)).await
}
