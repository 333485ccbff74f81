//! The load: a worker of nginx that answers a small file from a CPU of its own, and wrk on another.
//!
//! The answers are not logged: what else a server does for a request only makes that of the programs a smaller share.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::common::launch::spawn;

/// What is served: as long as the page that comes with nginx.
const PAGE: [u8; 612] = [b'x'; 612];

/// Connections that wrk keeps open.
const CONNECTIONS: &str = "-c32";

/// CPU of the client, and of whoever else is not to disturb the worker.
const CLIENT: &str = "1";

/// Serves while it lives.
pub(crate) struct Nginx {
    master: Child,
    pub(crate) worker: Pid,
    pub(crate) port: u16,
    _directory: tempfile::TempDir,
}

impl Nginx {
    pub(crate) fn available() -> bool {
        let found = |program: &str| Command::new(program).arg("-v").output().is_ok();
        found("/usr/sbin/nginx") && found("wrk")
    }

    /// Starts it with one worker on the first CPU.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = directory.path().display();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let text = format!(
            "daemon off;\nworker_processes 1;\nworker_cpu_affinity 1;\npid {at}/pid;\nerror_log {at}/error.log;\n\
             events {{}}\nhttp {{ sendfile on; tcp_nopush on; access_log off; keepalive_requests 1000000000;\n\
             server {{ listen 127.0.0.1:{port}; root {at}/page; location = /status {{ stub_status; }} }} }}\n"
        );
        fs::write(directory.path().join("nginx.conf"), text)?;
        fs::create_dir(directory.path().join("page"))?;
        fs::write(directory.path().join("page/index.html"), PAGE)?;
        // Its workers are another user and have to get there.
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(directory.path().join("nginx.conf")).args(["-p", &at.to_string()]);
        let master = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let children = format!("/proc/{0}/task/{0}/children", master.id());
        let deadline = Instant::now() + Duration::from_secs(20);
        let worker = loop {
            let children = fs::read_to_string(&children)?;
            if let Some(worker) = children.split_whitespace().next() {
                break Pid::from_raw(worker.parse()?);
            }
            ensure!(Instant::now() < deadline, "nginx did not start a worker");
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(Self { master, worker, port, _directory: directory })
    }

    /// Has wrk ask for so long. Returns how many requests were answered.
    pub(crate) fn ask(&self, time: Duration) -> anyhow::Result<u64> {
        let output = self.wrk(time).output()?;
        ensure!(output.status.success(), "wrk: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "wrk: {text}");
        let requests = text.lines().find_map(|line| line.trim().split_once(" requests in "));
        Ok(requests.context("wrk says no number of requests")?.0.parse()?)
    }

    /// Has wrk ask until what is returned is dropped, or for so long.
    pub(crate) fn ask_on(&self, time: Duration) -> anyhow::Result<Asked> {
        Ok(Asked(spawn(self.wrk(time).stdout(Stdio::null()))?))
    }

    fn wrk(&self, time: Duration) -> Command {
        let mut command = Command::new("taskset");
        // Whole seconds are all that it takes.
        command.args(["-c", CLIENT, "wrk", "-t1", CONNECTIONS, &format!("-d{}s", time.as_secs().max(1))]);
        command.arg(format!("http://127.0.0.1:{}/index.html", self.port));
        command
    }

    /// CPU time of the worker.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(ClockId::pid_cpu_clock_id(self.worker)?.now()?.into())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.worker, nix::sys::signal::Signal::SIGKILL);
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

/// Asks while it lives.
pub(crate) struct Asked(Child);

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
