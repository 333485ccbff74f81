//! Death certificates.

use std::borrow::Cow;

use serde::Serialize;

use super::worker::{Cpu, Id};
use super::{Seconds, Time};
use crate::input::{ExitStatus, Sender};
use crate::snapshot::DeathCertificate;
use crate::units::Pid;
use crate::worker::runs::Outcome;

#[derive(Serialize)]
pub(super) struct Exit<'a> {
    sequence: u64,
    id: Id<'a>,
    pool: &'a str,
    slot: u32,
    generation: u32,
    pid: Pid,
    comm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<Signal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    core_dumped: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<SignalSender>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_killed: Option<bool>,
    started: Time,
    ended: Time,
    lifetime_seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_final: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
    last_state: &'static str,
}

#[derive(Serialize)]
struct Signal {
    number: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'static, str>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum SignalSender {
    Kernel { kernel: bool },
    Process { pid: Pid, comm: String },
}

impl<'a> Exit<'a> {
    pub(super) fn of(death: &'a DeathCertificate) -> Self {
        let (exit_code, signal, core_dumped) = match death.status {
            ExitStatus::Code(code) => (Some(code), None, None),
            ExitStatus::Signal { signal, core_dumped } => {
                (None, Some(Signal { number: signal, name: signal_name(signal) }), Some(core_dumped))
            }
            ExitStatus::Unknown => (None, None, None),
        };
        Self {
            sequence: death.sequence,
            id: Id { pool: &death.pool, slot: death.slot, generation: death.generation },
            pool: &death.pool,
            slot: death.slot,
            generation: death.generation,
            pid: death.pid,
            comm: &death.comm,
            app: death.app.as_deref(),
            reason: Outcome::of(death.status, death.oom_killed).as_str(),
            exit_code,
            signal,
            core_dumped,
            sender: death.sender.map(|sender| match sender {
                Sender::Kernel => SignalSender::Kernel { kernel: true },
                Sender::Process { pid, comm } => {
                    SignalSender::Process { pid, comm: String::from_utf8_lossy(comm.as_bytes()).into_owned() }
                }
            }),
            oom_killed: death.oom_killed,
            started: Time(death.started_unix_ns),
            ended: Time(death.ended_unix_ns),
            lifetime_seconds: Seconds(death.lifetime_ns),
            cpu: death.cpu.map(Cpu::of),
            cpu_final: death.cpu.map(|_| death.cpu_final),
            peak_rss_bytes: death.peak_rss_bytes,
            last_state: death.last_state.as_str(),
        }
    }
}

/// Real-time signals are counted from 34, the first that libc leaves to programs.
pub(super) fn signal_name(number: u8) -> Option<Cow<'static, str>> {
    match number {
        34 => Some("SIGRTMIN".into()),
        35..=64 => Some(format!("SIGRTMIN+{}", number - 34).into()),
        _ => nix::sys::signal::Signal::try_from(i32::from(number)).ok().map(|signal| signal.as_str().into()),
    }
}
