//! `collector` follows every worker process of a host from fork to exit, from outside: no agent in the application, no
//! blocking sample, no `/proc` walk inside a scrape. This page is the map; the README is for users.
//!
//! # One direction, kernel to reader
//!
//! ```text
//!  kernel (collector-ebpf)                        user space (this crate)
//!  lifecycle probes ── ring buffer ──────────▶ kernel::events ─┐
//!  fork probe ── slot table (mmap) ──────────▶ kernel::slots ──┤  input::Source
//!  scheduler probes ── times, buckets (mmap) ▶ kernel::schedule ┤
//!  socket probes ── requests (mmap) ──────────▶ kernel::requests ┤
//!  both ── their time, the slowest (mmap) ────▶ kernel::waterfall ┤
//!  task walk ── one run, rows (mmap) ────────▶ kernel::tasks ──┼─▶ aggregate ─▶ snapshot (Arc) ─▶ render ─▶ http
//!  /proc, process connector (fallback) ──────▶ procfs ─────────┘      owns worker::registry
//!
//!  sampling programs ── stacks (mmap) ───────▶ kernel::Sampler ─▶ profiler ─▶ profile::Profile ─▶ render::pprof ─▶ http
//!   (while somebody asks)   ◀── address spaces, rules of .eh_frame ──┘
//! ```
//!
//! A fact enters once, as an [`input::Input`]; [`aggregate`] applies it to [`worker::registry`] in the order in which it
//! came; [`collect`], the only thread that calls a source, publishes an immutable [`snapshot::Snapshot`] after each
//! pass; [`http`] renders the latest one, at most once per format, and never waits for anything else. Profiles are asked
//! for and awaited: [`profiler`] is a thread of its own, which samples while somebody asks, or all the time if a flag
//! says so.
//!
//! # Who lives where
//!
//! | module | what it is |
//! |---|---|
//! | [`units`] | process identity, clocks, CPU time |
//! | [`input`] | the closed set of facts a source can state, and what a source has to be able to do |
//! | [`snapshot`] | the immutable view that readers get |
//! | [`histogram`] | windows over the bucket layout of `collector_ebpf::histogram`; quantiles with their coverage |
//! | [`procfs`] | pure parsers, the `/proc` source with its process connector, facts about programs, control groups and sockets |
//! | [`kernel`] | the eBPF source: BTF offsets, loading, ring buffer, slots, tasks, the scheduler, requests, waterfalls. Nearly all `unsafe` is here |
//! | [`worker`] | who is a worker, of which pool, in which slot; where its time went; what its work was; whether CPU adds up. No IO |
//! | [`profile`] | a profile as plain data, and what it is made of: files that processes have mapped, the rules by which callers are found in them, names |
//! | [`aggregate`] | the one owner of registry and process table |
//! | [`source`] | eBPF, or `/proc` with the reason why |
//! | [`collect`] | the collecting thread |
//! | [`profiler`] | the profiling thread: captures, the last ten minutes, and whose stacks these are |
//! | [`governor`] | keeps what the scheduler probes cost within a budget |
//! | [`render`] | snapshot to Prometheus text, OpenMetrics, protobuf, JSON; profile to pprof, text, folded stacks, flame graph. The only home of wire types |
//! | [`auth`], [`http`] | who may ask; the server |
//! | [`config`] | what was typed, what the files say, the validated result |
//! | [`files`] | reads what an operator names, without waiting and within a limit |
//! | [`privileges`] | giving up rights |
//! | [`heap`] | giving up memory; the allocator of the program, which remembers where some of what it gives out was asked for |
//! | [`app`], [`doctor`] | wiring; the report of what works here |
//!
//! # What must stay true
//!
//! - A worker is (pool, slot, generation); a process is ([pid, start](units::ProcessKey)). Pids come back, slots are
//!   taken over, and neither may be mistaken for the other.
//! - Totals of a pool never fall, but for those of the scheduler and of requests, which begin anew after nobody wanted them. What a worker
//!   used is added reading by reading and completed when the kernel lets go of it; only then is its slot record given
//!   back.
//! - A thread that is followed is in exactly one kind of time; the times of all kinds add up to the lives of threads.
//! - As many things keep a worker busy as threads of its are not parked and requests of its are in flight. User space, too,
//!   changes the flags that say so, where a pool waits for work in something else, and sees to it that the number is right.
//! - A request has a place in the kernel's table from its first byte until its answer is known to be complete; its worker is
//!   busy until the first byte of that. Each ends in exactly one outcome.
//! - The time of a request is split only if its thread had no other meanwhile; the parts add up to its duration.
//! - Missing is `None` all the way, and an absent series; never 0.
//! - Whatever is dropped is counted, by reason, in [`snapshot::Own`].
//! - Nothing grows without bound: processes, pools, slots, certificates, label length, connections have ceilings.
//! - What a pool does, however fast, takes no death certificate from one that has fewer.
//! - Nothing below [`collect`] sleeps or blocks; nothing in [`http`] touches `/proc`, bpf(2) or the registry.
//! - We are a worker of nobody: a profile of ourselves is taken by programs with maps of their own, in which nobody else is.
//! - While nobody asks for a profile no sampling program is loaded, and none of its maps exists.
//! - Files of what is profiled are read piece by piece and never mapped: one that is cut off while it is mapped kills its
//!   reader.
//! - Names, titles, command lines and configuration files of others are hostile bytes.
//!
//! # Dependencies, and why each
//!
//! aya, aya-obj: maps and object files of eBPF · procfs: `/proc` where it is not hot · tokio, axum, hyper, hyper-util: the
//! server, with the header timeout that `axum::serve` lacks · tokio-rustls, rustls-pki-types, rustls-webpki, ring: TLS and
//! keyed digests · bcrypt, base64: basic authentication as exporters have it · serde, serde_json, serde-saphyr: JSON and a
//! maintained YAML · clap: flags with environment twins · regex: linear time on hostile command lines · hdrhistogram:
//! quantiles · object, gimli: ELF files and the descriptions of frames in them, read by those who unwind and symbolize in
//! Rust; object comes with aya anyway · blazesym: symbol tables, lines and inlined functions · rustc-demangle,
//! cpp_demangle: names, within a limit · nix, libc, socket2, caps: system calls, netlink, capabilities · syscalls: their
//! names · jiff: RFC 3339 times and durations · flate2: gzip · inferno: flame graphs, of exactly the version whose script
//! browsers are told to run; CDDL-1.0, which asks nothing of files that are not its own · itoa, ryu: numbers without
//! allocation · bytes · thiserror, anyhow: errors of modules, errors of the program ·
//! tracing, tracing-subscriber, tracing-logfmt: logs.
//!
//! Not jemalloc with jemalloc_pprof for profiles of our own heap: loaded in place of the C library's allocator it had 14.5 to
//! 16.5 MB resident where that has 11, with sampling on, of a budget of 16 MiB; and it is C to be configured and built. Ours samples in front of the C library's.
//!
//! Not prost for the protobuf exposition: it would want all labels of every sample as values of its own, once a second
//! beside what is watched (`cargo bench --bench render` has both). Nor for `profile.proto`: it would want the whole profile a
//! second time, as messages, and the declarations of these are as long as writing them by hand. It reads in the tests what we
//! write.
#![warn(missing_docs)]

pub mod aggregate;
pub mod app;
pub mod auth;
pub mod collect;
pub mod config;
pub mod doctor;
pub mod files;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod governor;
pub mod heap;
pub mod histogram;
pub mod http;
pub mod input;
pub mod kernel;
pub mod privileges;
pub mod procfs;
pub mod profile;
pub mod profiler;
pub mod render;
pub mod snapshot;
pub mod source;
pub mod units;
pub mod worker;

#[cfg(test)]
#[path = "../../tests/support/client_model.rs"]
mod client_model;
