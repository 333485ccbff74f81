//! Snapshot to bytes, pure; the only home of wire formats.
