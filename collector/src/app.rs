//! Config to running service: bind, attach, drop privileges, collect, serve, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::collect::{self, Collector, Command, Commands, Setup};
use crate::config;
use crate::config::cli::Flags;
use crate::config::file::FileConfig;
use crate::config::web::WebConfig;
use crate::http;
use crate::kernel::support::Support;
use crate::procfs::{Cgroups, ProgramReader, Sockets};
use crate::profiler::{self, Profiler};
use crate::render::prometheus::Groups;
use crate::snapshot::Snapshot;
use crate::units::{HostFacts, unix_ns};
use crate::{heap, kernel, privileges, source};

/// Runs until SIGTERM or SIGINT.
pub fn run(flags: Flags) -> anyhow::Result<()> {
    heap::map_large_blocks();
    let file = config::load_file(&flags)?;
    let web = config::load_web(&flags)?;
    // Before anything that costs: a port that is taken is the commonest mistake.
    let listeners = flags.listen_addresses.iter().map(|a| bind(*a)).collect::<anyhow::Result<Vec<_>>>()?;

    let host = HostFacts::of_this_host();
    let support = Support::probe(&flags.sysfs);
    let opened = source::open(flags.source, flags.requests_by, &support, &flags.procfs, host)?;
    for feature in opened.obstacles.iter().filter(|f| !f.enabled) {
        tracing::warn!(feature = feature.name, reason = %feature.reason, remedy = %feature.remedy, "reduced");
    }
    let facts = ProgramReader::open(&flags.procfs)
        .with_context(|| format!("reading programs from {}", flags.procfs.display()))?;
    let cgroups = Cgroups::open(&flags.procfs)
        .with_context(|| format!("reading control groups from {}", flags.procfs.display()))?;
    let sockets = Sockets::open(&flags.procfs)
        .with_context(|| format!("reading descriptors from {}", flags.procfs.display()))?;
    let (publisher, snapshots) = watch::channel(None);
    let continuous_hz = (flags.continuous_hz > 0).then_some(flags.continuous_hz);
    let (profiler, profiling) = opened
        .samplers
        .map(|samplers| profiler::new(samplers, snapshots.clone(), &flags.procfs, continuous_hz))
        .transpose()
        .with_context(|| format!("reading processes from {}", flags.procfs.display()))?
        .unzip();
    if continuous_hz.is_some() && profiler.is_none() {
        tracing::warn!("nothing is sampled all the time: that takes eBPF on x86_64 (see `collector doctor`)");
    }
    // For as long as we run: closing it switches them off again.
    let _statistics = flags.bpf_stats.then(kernel::run_time_statistics).transpose().unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel does not let us switch run-time statistics on (CAP_SYS_ADMIN)");
        None
    });
    match privileges::drop_all_but_needed() {
        Ok(kept) => tracing::debug!(kept = kept.join(","), "dropped capabilities"),
        Err(error) => tracing::warn!(%error, "dropping capabilities failed; all are kept"),
    }

    let connections = Arc::new(http::Connections::default());
    let loaded_unix_ns = flags.config_file.is_some().then(unix_ns);
    let source_name = opened.source.name();
    let served = Served { web, groups: file.groups, profiler };
    let collector = Collector::new(Setup {
        source: opened.source,
        facts: Box::new(facts),
        cgroups: Box::new(cgroups),
        sockets: Box::new(sockets),
        features: opened.obstacles,
        config: file.aggregate(),
        config_loaded_unix_ns: loaded_unix_ns,
        host,
        profiling: served.profiler.as_ref().map(Profiler::account),
        overhead_budget: (flags.overhead_budget > 0.0).then_some(flags.overhead_budget / 100.0),
        publisher,
        refused_connections: connections.refused_counter(),
    });
    let (commands, inbox) = collect::inbox().context("a pipe to the collecting thread")?;
    let thread = thread::Builder::new()
        .name("collect".into())
        .spawn(move || collector.run(&inbox))
        .context("starting the collecting thread")?;

    if let Some(profiling) = profiling {
        // It ends with the last who could ask it for something; what it does until then is of no use to anybody.
        thread::Builder::new()
            .name("profile".into())
            .spawn(move || profiling.run())
            .context("starting the profiling thread")?;
    }

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the server")?;
    let result =
        runtime.block_on(serve(&flags, served, listeners, snapshots, &connections, &commands, source_name));
    // A hash that is being computed cannot be interrupted, and nobody waits for it any more.
    runtime.shutdown_background();
    // The collecting thread ends with the last of these.
    drop(commands);
    if thread.join().is_err() {
        bail!("the collecting thread panicked");
    }
    result
}

fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                " (is another collector running? --web.listen-address takes another one)"
            }
            std::io::ErrorKind::AddrNotAvailable => " (this host has no such address)",
            _ => "",
        };
        anyhow::Error::new(error).context(format!("listening on {address}{hint}"))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What is served, and how; a reload may change what the files say of it.
struct Served {
    web: WebConfig,
    groups: Groups,
    profiler: Option<Profiler>,
}

type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;

async fn serve(
    flags: &Flags,
    Served { web, groups, profiler }: Served,
    listeners: Vec<std::net::TcpListener>,
    snapshots: Snapshots,
    connections: &Arc<http::Connections>,
    commands: &Commands,
    source: &'static str,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let (reload, mut reload_requests) = tokio::sync::mpsc::channel(1);
    let mut published = snapshots.clone();
    let captures = profiler.clone();
    let shared =
        Arc::new(http::Shared::new(flags.http.clone(), web.access, snapshots, Some(reload), profiler));
    shared.set_groups(groups);
    let scheme = if web.tls.is_some() { "https" } else { "http" };
    let tls = Arc::new(http::tls::Tls::new(web.tls)?);
    let reloader = Reloader { flags, shared: &shared, tls: &tls, commands };
    let router = http::router(Arc::clone(&shared));
    let (shutdown, _) = broadcast::channel::<()>(1);
    let mut servers = JoinSet::new();
    for listener in listeners {
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        tracing::info!(%address, source, dashboard = format!("{scheme}://{address}/"), "listening");
        let mut stopped = shutdown.subscribe();
        let (router, tls, connections) = (router.clone(), Arc::clone(&tls), Arc::clone(connections));
        servers.spawn(async move {
            let stopped = async move {
                let _ = stopped.recv().await;
            };
            http::serve(listener, router, tls, http::Limits::default(), connections, stopped).await;
        });
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                // Whatever came of it is in the log.
                let _ = reloader.reload();
            }
            Ok(()) = published.changed() => shared.forget_old(),
            Some(request) = reload_requests.recv() => {
                // Whoever asked may have gone away.
                let _ = request.answer.send(reloader.reload());
            }
        }
    }
    tracing::info!("shutting down");
    if let Some(profiler) = captures {
        profiler.end_captures();
    }
    drop(shutdown);
    while servers.join_next().await.is_some() {}
    Ok(())
}

/// What a reload touches.
struct Reloader<'a> {
    flags: &'a Flags,
    shared: &'a http::Shared,
    tls: &'a http::tls::Tls,
    commands: &'a Commands,
}

impl Reloader<'_> {
    /// Reads the configuration files again. All stays as it was when one of them is refused.
    fn reload(&self) -> Result<(), String> {
        let result = self.read();
        let command = match &result {
            Ok(file) => {
                tracing::info!(pools = file.matcher.rules().len(), "configuration reloaded");
                Command::Reconfigure(file.aggregate())
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "configuration refused; the old one stays");
                Command::ReloadFailed
            }
        };
        self.commands.send(command).map_err(|_| "the collecting thread has ended".to_owned())?;
        result.map(drop).map_err(|error| format!("{error:#}"))
    }

    fn read(&self) -> anyhow::Result<FileConfig> {
        let file = config::load_file(self.flags)?;
        let web = config::load_web(self.flags)?;
        self.tls.replace(web.tls)?;
        self.shared.set_access(web.access);
        self.shared.set_groups(file.groups);
        Ok(file)
    }
}
