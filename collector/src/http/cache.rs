//! Large documents, rendered at most once per snapshot: any number of scrapes of one snapshot cost one rendering,
//! and a document that nobody asks for costs nothing.
//!
//! Only the bodies of one snapshot are kept, and of those only what was asked for, up to a bound: who asks for one
//! selection of metrics after the other must not fill the memory. A compressed document never exists uncompressed as a
//! whole. Readers that are still being sent an older body keep that one alive.
//!
//! Rendering happens where the request is handled. It takes a few milliseconds for a thousand workers, which is less
//! than what a thread for it would cost in stack and allocator arena, at most once per snapshot.

use std::io::{BufWriter, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::render::json;
use crate::render::prometheus::{self, Buffer, Format, Groups};
use crate::snapshot::Snapshot;

/// Text of this kind shrinks to a tenth at the fastest level already; the next ones double the time for a few percent.
const LEVEL: Compression = Compression::new(1);

/// How much text is collected before it goes to the compressor.
const CHUNK_BYTES: usize = 32 * 1024;

/// Bodies of one snapshot that are kept: each document there is, in both codings, as long as all readers want the same
/// metrics.
const KEPT: usize = 8;

/// What is large enough to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Metrics(Format, Groups),
    Stats,
}

/// A body that is rendered once, by whoever asks first.
#[derive(Debug)]
struct Kept {
    document: Document,
    gzip: bool,
    body: Arc<OnceLock<Bytes>>,
}

#[derive(Debug, Default)]
struct Bodies {
    /// Whose bodies these are. As long as this exists no other snapshot can get the address, and it keeps only the
    /// outermost part of the snapshot in memory.
    of: Weak<Snapshot>,
    /// A plain buffer of the snapshot before, to be filled again.
    spare: Vec<u8>,
    kept: Vec<Kept>,
}

/// Keeps bodies of the latest snapshot asked for.
#[derive(Debug, Default)]
pub(super) struct Cache {
    current: Mutex<Bodies>,
}

impl Cache {
    pub(super) fn get(&self, snapshot: &Arc<Snapshot>, document: Document, gzip: bool) -> Bytes {
        let (body, spare) = self.of(snapshot, document, gzip);
        let render = || if gzip { compressed(snapshot, document) } else { plain(snapshot, document, spare) };
        body.get_or_init(render).clone()
    }

    /// Drops what nobody will ask for again, when another snapshot has come.
    pub(super) fn forget_old(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.of.strong_count() == 0 {
            *current = Bodies { spare: std::mem::take(&mut *current).into_spare(), ..Bodies::default() };
        }
    }

    /// The place of a body, and a buffer to render it into.
    fn of(
        &self,
        snapshot: &Arc<Snapshot>,
        document: Document,
        gzip: bool,
    ) -> (Arc<OnceLock<Bytes>>, Vec<u8>) {
        // Nothing under this lock can panic half-way, so a poisoned one is as good.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(current.of.as_ptr(), Arc::as_ptr(snapshot)) {
            let spare = std::mem::take(&mut *current).into_spare();
            *current = Bodies { of: Arc::downgrade(snapshot), spare, kept: Vec::new() };
        }
        let same = |kept: &&Kept| kept.document == document && kept.gzip == gzip;
        if let Some(kept) = current.kept.iter().find(same) {
            return (Arc::clone(&kept.body), Vec::new());
        }
        let body = Arc::new(OnceLock::new());
        if current.kept.len() < KEPT {
            current.kept.push(Kept { document, gzip, body: Arc::clone(&body) });
        }
        (body, if gzip { Vec::new() } else { std::mem::take(&mut current.spare) })
    }
}

impl Bodies {
    /// The largest plain buffer that nobody is being sent any more.
    fn into_spare(self) -> Vec<u8> {
        let unused = self
            .kept
            .into_iter()
            .filter(|kept| !kept.gzip)
            .filter_map(|kept| Arc::into_inner(kept.body)?.into_inner())
            .filter(Bytes::is_unique);
        // A unique buffer is taken over, not copied.
        unused.max_by_key(Bytes::len).map_or(self.spare, Vec::from)
    }
}

fn plain(snapshot: &Snapshot, document: Document, mut out: Vec<u8>) -> Bytes {
    match document {
        Document::Metrics(format, groups) => {
            let mut text = Buffer::over(out);
            prometheus::render(snapshot, format, groups, &mut text, &mut |_| ());
            out = text.into_written();
        }
        Document::Stats => {
            out.clear();
            json::stats(snapshot, &mut out);
        }
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
        Document::Metrics(format, groups) => {
            let mut text = Buffer::default();
            let mut drain = |text: &mut Buffer| {
                if text.written().len() >= CHUNK_BYTES {
                    let _ = encoder.write_all(text.written());
                    text.clear();
                }
            };
            prometheus::render(snapshot, format, groups, &mut text, &mut drain);
            let _ = encoder.write_all(text.written());
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
