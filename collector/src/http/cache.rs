//! Large documents, rendered at most once per snapshot: any number of scrapes of one snapshot cost one rendering,
//! and a document that nobody asks for costs nothing.
//!
//! Only the bodies of one snapshot are kept, and of those only what was asked for: a compressed document never
//! exists uncompressed as a whole. Readers that are still being sent an older body keep that one alive.
//!
//! Rendering happens where the request is handled. It takes a few milliseconds for a thousand workers, which is less
//! than what a thread for it would cost in stack and allocator arena, at most once per snapshot.

use std::io::{BufWriter, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::render::{json, prometheus};
use crate::snapshot::Snapshot;

/// Text of this kind shrinks to a tenth at the fastest level already; the next ones double the time for a few percent.
const LEVEL: Compression = Compression::new(1);

/// How much text is collected before it goes to the compressor.
const CHUNK_BYTES: usize = 32 * 1024;

/// What is large enough to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Metrics(prometheus::Format),
    Stats,
}

#[derive(Debug, Default)]
struct Bodies {
    /// Whose bodies these are. As long as this exists no other snapshot can get the address, and it keeps only the
    /// outermost part of the snapshot in memory.
    of: Weak<Snapshot>,
    /// A plain buffer of the snapshot before, to be filled again.
    spare: Mutex<Vec<u8>>,
    plain: [OnceLock<Bytes>; 3],
    gzip: [OnceLock<Bytes>; 3],
}

/// Keeps bodies of the latest snapshot asked for.
#[derive(Debug, Default)]
pub(super) struct Cache {
    current: Mutex<Arc<Bodies>>,
}

impl Cache {
    pub(super) fn get(&self, snapshot: &Arc<Snapshot>, document: Document, gzip: bool) -> Bytes {
        let bodies = self.bodies_of(snapshot);
        let cells = if gzip { &bodies.gzip } else { &bodies.plain };
        let index = match document {
            Document::Metrics(prometheus::Format::Text) => 0,
            Document::Metrics(prometheus::Format::OpenMetrics) => 1,
            Document::Stats => 2,
        };
        let render = || match gzip {
            true => compressed(snapshot, document),
            false => {
                let spare = std::mem::take(&mut *bodies.spare.lock().unwrap_or_else(PoisonError::into_inner));
                plain(snapshot, document, spare)
            }
        };
        cells[index].get_or_init(render).clone()
    }

    fn bodies_of(&self, snapshot: &Arc<Snapshot>) -> Arc<Bodies> {
        // Nothing under this lock can panic half-way, so a poisoned one is as good.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(current.of.as_ptr(), Arc::as_ptr(snapshot)) {
            let before = std::mem::take(&mut *current);
            *current = Arc::new(Bodies {
                of: Arc::downgrade(snapshot),
                spare: Mutex::new(Arc::into_inner(before).map_or_else(Vec::new, Bodies::into_spare)),
                ..Bodies::default()
            });
        }
        Arc::clone(&current)
    }
}

impl Bodies {
    /// The largest plain buffer that nobody is being sent any more.
    fn into_spare(self) -> Vec<u8> {
        let unused = self.plain.into_iter().filter_map(OnceLock::into_inner).filter(Bytes::is_unique);
        // A unique buffer is taken over, not copied.
        let mut spare = unused.max_by_key(Bytes::len).map_or_else(Vec::new, Vec::from);
        spare.clear();
        spare
    }
}

fn plain(snapshot: &Snapshot, document: Document, mut out: Vec<u8>) -> Bytes {
    match document {
        Document::Metrics(format) => prometheus::render(snapshot, format, &mut out, &mut |_| ()),
        Document::Stats => json::stats(snapshot, &mut out),
    }
    // A growing buffer doubles; what is kept until the next snapshot has an eighth to grow at most.
    if out.capacity() > out.len() + out.len() / 8 {
        out.shrink_to(out.len() + out.len() / 64);
    }
    Bytes::from(out)
}

fn compressed(snapshot: &Snapshot, document: Document) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), LEVEL);
    // Writing to a vector cannot fail, here and below.
    match document {
        Document::Metrics(format) => {
            let mut out = Vec::new();
            let mut drain = |out: &mut Vec<u8>| {
                if out.len() >= CHUNK_BYTES {
                    let _ = encoder.write_all(out);
                    out.clear();
                }
            };
            prometheus::render(snapshot, format, &mut out, &mut drain);
            let _ = encoder.write_all(&out);
        }
        Document::Stats => {
            let mut buffered = BufWriter::with_capacity(CHUNK_BYTES, &mut encoder);
            json::stats(snapshot, &mut buffered);
            let _ = buffered.flush();
        }
    }
    let mut body = encoder.finish().unwrap_or_default();
    body.shrink_to_fit();
    Bytes::from(body)
}
