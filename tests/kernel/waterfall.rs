//! Where the time of requests went, against what the threads measured that answered them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::portable::schedule::answer_file;
use crate::requests::serve::{ask, asked, doing, doing_before};
use crate::requests::{OPTIONS, connect};
use crate::schedule::slack;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

/// What a mixed request did, in the order in which the worker tells it: first where it was on a CPU for certain, and then what
/// was charged to it as time on a CPU in the calls that blocked.
///
/// The clock of a thread begins before it comes to its CPU, which is some 10 to 40 µs for each wake-up on a virtual machine; so
/// time on a CPU is at least the first and at most both together.
const KINDS: [&str; 5] = ["on_cpu", "in_calls", "sleep", "lock", "runnable"];

/// Lengths of the `turn`th of many mixed requests: on a CPU, asleep and in a lock, ms. Each in its own rhythm, and one in
/// thirty much longer than the rest, no two of these alike.
fn lengths(turn: usize) -> [usize; 3] {
    let sleep = if turn % 30 == 29 { 60 + turn / 3 } else { [4, 4, 9, 4, 9][turn % 5] };
    [[1, 3, 6][turn % 3], sleep, [2, 2, 2, 7][turn % 4]]
}

fn mix(stream: &mut TcpStream, turns: impl Iterator<Item = usize>) {
    for turn in turns {
        let [cpu, sleep, lock] = lengths(turn);
        ask(stream, &format!("mix {cpu} {sleep} {lock}\n"), "mixed\n");
    }
}

/// What the worker has written to its file once it has told of so many requests, ns, each kind by itself.
fn told(file: &std::path::Path, count: usize) -> [Vec<u64>; KINDS.len()] {
    let lines = eventually("it has told", || {
        let text = std::fs::read_to_string(file).ok()?;
        let lines: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        (lines.len() == count * KINDS.len()).then_some(lines)
    });
    std::array::from_fn(|kind| lines.iter().copied().skip(kind).step_by(KINDS.len()).collect())
}

/// A pool's waterfall says what the threads have measured.
///
/// So many requests may be missing.
fn agrees(pool: &Value, kinds: &[Vec<u64>; KINDS.len()], missing: usize) {
    let waterfall = &pool["requests"]["waterfall"];
    let mut known = 0.0;
    let [_, in_calls, ..] = kinds;
    for (name, truth) in KINDS.into_iter().zip(kinds).filter(|(name, _)| *name != "in_calls") {
        let seconds = waterfall["seconds"][name].as_f64().unwrap();
        known += seconds;
        if name == "runnable" {
            // The kernel's own account of it begins elsewhere, and most have not waited.
            continue;
        }
        let sorted = |ns: &mut dyn Iterator<Item = u64>| {
            let mut seconds: Vec<f64> = ns.map(|ns| ns as f64 / 1e9).collect();
            seconds.sort_unstable_by(f64::total_cmp);
            seconds
        };
        let on_cpu = name == "on_cpu";
        let truth_and_more = truth.iter().zip(in_calls).map(|(ns, more)| ns + if on_cpu { *more } else { 0 });
        let (truth, most) = (sorted(&mut truth.iter().copied()), sorted(&mut { truth_and_more }));
        let measured: f64 = most.iter().sum();
        let least: f64 = truth.iter().take(truth.len() - missing).sum();
        println!("{name}: {seconds} s, measured {least} to {measured} s");
        let share = if on_cpu { 0.005 } else { 0.02 };
        let within = least * (1.0 - share)..=measured * (1.0 + share);
        assert!(within.contains(&seconds), "{name}: {least} to {measured} s: {waterfall}");
        let window = &pool["quantiles"]["request_time_seconds"][name]["start"];
        assert_eq!(window["count"], truth.len() - missing, "{name}: {window}");
        for (quantile, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            let rank = (share * (truth.len() - missing) as f64).ceil() as usize - 1;
            // Each that is missing may have been before it; and two that are nearly the same may change places.
            let (low, high) = (truth[rank - 1], most[(rank + 1 + missing).min(most.len() - 1)]);
            let ours = window[quantile].as_f64().unwrap();
            println!("{name} {quantile}: {ours} s, measured {low} to {high} s");
            assert!(ours >= low - slack(low) && ours <= high + slack(high), "{name} {quantile}: {window}");
        }
    }
    let duration = waterfall["duration_seconds"].as_f64().unwrap();
    assert!((duration - known).abs() <= duration * 0.005, "{waterfall}");
    assert_eq!(waterfall["residual_seconds"], 0.0, "{waterfall}");
}

fn pool(collector: &Collector, master: Pid) -> Value {
    pool_of(&collector.stats(), master).unwrap().clone()
}

/// Requests that are not split although they had their thread to themselves: no more than switches were not seen.
fn missing(collector: &Collector, waterfall: &Value, count: usize) -> usize {
    let unseen = collector.unseen_switches() as usize;
    let split = waterfall["requests"].as_u64().unwrap() as usize;
    assert!(split <= count && count - split <= unseen, "{count} requests, {unseen} unseen: {waterfall}");
    println!("{split} of {count} requests, {unseen} switches not seen");
    count - split
}

#[test]
fn the_time_of_requests_is_where_their_worker_spent_it() {
    const COUNT: usize = 300;
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = doing(&format!("serve {address}"));
    let mut stream = connect(&address);
    mix(&mut stream, 0..COUNT);
    stream.write_all(b"tell\n").unwrap();
    let kinds = told(&file, COUNT);
    drop(stream);
    asked(&collector, master.pid(), pid, &[("ok", COUNT as u64), ("aborted", 1)]);
    let pool = pool(&collector, master.pid());
    let slow = collector.json(&format!("/api/v1/pools/{}/slow", pool["name"].as_str().unwrap()));
    let missing = missing(&collector, &pool["requests"]["waterfall"], COUNT);
    agrees(&pool, &kinds, missing);
    // One of all was not answered.
    let coverage = pool["requests"]["waterfall"]["coverage"].as_f64().unwrap();
    assert!((coverage - (COUNT - missing) as f64 / (COUNT + 1) as f64).abs() < 1e-9, "{coverage}");

    let slowest = slow["slowest"]["start"].as_array().unwrap();
    assert_eq!(slowest.len(), 10, "{slow}");
    let mut durations: Vec<u64> =
        (0..COUNT).map(|number| kinds.iter().map(|kind| kind[number]).sum()).collect();
    durations.sort_unstable_by_key(|ns| std::cmp::Reverse(*ns));
    let mut durations = durations.into_iter().map(|ns| ns as f64 / 1e9);
    let mut passed_over = 0;
    for request in slowest {
        let seconds = |of: &Value| of.as_f64().unwrap();
        let duration = seconds(&request["duration_seconds"]);
        let agrees = |truth: f64| (duration - truth).abs() <= truth * 0.02;
        passed_over += durations.position(agrees).unwrap_or_else(|| panic!("{duration} s: {slow}"));
        let parts: f64 = request["seconds"].as_object().unwrap().values().map(seconds).sum();
        assert!((parts - duration).abs() < 1e-6, "{request}");
        assert_eq!((&request["pid"], &request["outcome"]), (&pid.as_raw().into(), &"ok".into()), "{request}");
        assert!(request["slot"].is_number(), "{request}");
    }
    assert!(passed_over <= missing, "{missing} missing: {slow}");
}

#[test]
fn threads_that_answer_at_the_same_time_have_times_of_their_own() {
    const CONNECTIONS: usize = 4;
    const EACH: usize = 60;
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = doing(&format!("serve-in-threads {address}"));
    drop(connect(&address));
    std::thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let address = &address;
            scope.spawn(move || {
                let mut stream = connect(address);
                mix(&mut stream, (0..EACH).map(|turn| turn * CONNECTIONS + number));
            });
        }
    });
    let kinds = told(&file, CONNECTIONS * EACH);
    asked(&collector, master.pid(), pid, &[("ok", (CONNECTIONS * EACH) as u64)]);
    let pool = pool(&collector, master.pid());
    let missing = missing(&collector, &pool["requests"]["waterfall"], CONNECTIONS * EACH);
    agrees(&pool, &kinds, missing);
}

#[test]
fn the_slowest_request_is_kept_whatever_the_interval() {
    // It has gone through two stretches of time by then, of 2^33 ns each.
    const LASTS: Duration = Duration::from_secs(18);
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("collector.yml");
    std::fs::write(&config, "interval: 1s\n").unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let file = format!("--config.file={}", config.display());
    let options = [&OPTIONS[..], &[&file]].concat();
    let (master, collector, _, _) = doing_before(&options, &format!("serve {address}"));
    let name = pool(&collector, master.pid())["name"].as_str().unwrap().to_owned();
    let read = |interval: &str| {
        let loaded = || collector.metric("collector_config_last_reload_success_timestamp_seconds");
        std::fs::write(&config, format!("interval: {interval}\n")).unwrap();
        let before = loaded();
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        eventually("it has read all", || (loaded() > before).then_some(()));
    };
    read("1h");
    let mut stream = connect(&address);
    ask(&mut stream, "mix 1 700 2\n", "mixed\n");
    let begin = Instant::now();
    let mut quick = 0;
    while begin.elapsed() < LASTS {
        ask(&mut stream, "mix 1 20 2\n", "mixed\n");
        quick += 1;
    }
    read("50m");
    let slow = collector.json(&format!("/api/v1/pools/{name}/slow"));
    for window in ["1m", "5m", "start"] {
        let longest = slow["slowest"][window][0]["duration_seconds"].as_f64().unwrap();
        assert!(longest > 0.7, "{longest} s in {window} after {quick} quick ones");
    }
}

/// Workers with names and sockets of their own, each of which answers `ok` to whatever it is asked.
const NAMED: &str = r#"
import os, socket, sys
directory, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    if os.fork() == 0:
        with open("/proc/self/comm", "w") as comm:
            comm.write(f"wf{number}")
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{directory}/{number}.new")
        server.listen()
        os.rename(f"{directory}/{number}.new", f"{directory}/{number}")
        while True:
            client, _ = server.accept()
            while client.recv(100):
                client.sendall(b"ok")
while True:
    os.wait()
"#;

#[test]
fn pools_that_are_asked_have_the_waterfalls_that_there_are() {
    const POOLS: usize = 70;
    const LIMIT: usize = 64;
    let directory = directory_with(&[("named.py", NAMED)]);
    let config = directory.path().join("collector.yml");
    let write = |but: &[usize]| {
        let rules: String = (0..POOLS)
            .filter(|n| !but.contains(n))
            .map(|n| format!("  - {{name: wf{n}, match: {{comm: wf{n}}}}}\n"))
            .collect();
        std::fs::write(&config, format!("zero_config: false\npools:\n{rules}")).unwrap();
    };
    write(&[]);
    let file = format!("--config.file={}", config.display());
    let collector = Collector::start(&[&OPTIONS[..], &[&file]].concat());
    let at = directory.path().display().to_string();
    let mut command =
        command_in(directory.path(), "/usr/bin/python3", &["named.py", &at, &POOLS.to_string()]);
    let _server = Server::start(&mut command);
    let pools = || collector.stats()["pools"].as_array().unwrap().clone();
    let waits = |pool: &Value| matches!(pool["workers"][0]["state"].as_str(), Some("ready" | "idle"));
    eventually("all wait for connections", || pools().iter().all(waits).then_some(()));
    let ask_all = |which: std::ops::Range<usize>| {
        for number in which {
            let mut stream = UnixStream::connect(directory.path().join(number.to_string())).unwrap();
            for _ in 0..3 {
                ask(&mut stream, "?", "ok");
            }
        }
    };
    // How many requests of each pool are split; `None` where there is no waterfall.
    let split = || -> Vec<Option<u64>> {
        let pools = pools();
        let of = |number: usize| {
            let pool = pools.iter().find(|pool| pool["name"] == format!("wf{number}"))?;
            pool["requests"]["waterfall"]["requests"].as_u64()
        };
        (0..POOLS).map(of).collect()
    };
    // Those that nobody has asked yet make room for those that were not there first.
    let asked = |which: std::ops::Range<usize>, at_least: usize| {
        eventually(&format!("{at_least} of {which:?} have requests that are split"), || {
            ask_all(which.clone());
            std::thread::sleep(Duration::from_millis(500));
            let with = split()[which.clone()].iter().filter(|split| split.is_some_and(|n| n > 0)).count();
            assert!(with <= LIMIT, "{with}");
            (with == at_least).then_some(())
        })
    };
    asked(10..POOLS, POOLS - 10);
    assert_eq!(collector.metric("collector_losses_total{reason=\"waterfall_limit\"}"), Some(0.0));
    asked(0..10, LIMIT - (POOLS - 10));
    let without: Vec<usize> = (0..POOLS).filter(|number| split()[*number].is_none()).collect();
    assert_eq!(without.len(), POOLS - LIMIT, "{without:?}");
    assert_eq!(
        collector.metric("collector_losses_total{reason=\"waterfall_limit\"}"),
        Some(without.len() as f64)
    );
    let text = collector.text("/metrics", "text/plain");
    for number in &without {
        assert!(*number < 10, "it was asked last: {without:?}");
        let mut response = collector.request(&format!("/api/v1/pools/wf{number}/slow"), &[]).unwrap();
        assert_eq!(response.status(), 404);
        let body = response.body_mut().read_to_string().unwrap();
        assert!(body.contains("64 pools at most"), "{body}");
        for family in ["waterfall_requests_total", "request_time_seconds_count"] {
            assert!(!text.contains(&format!("worker_pool_{family}{{pool=\"wf{number}\"")), "{family}");
        }
    }
    // As many of the others go.
    let gone: Vec<usize> = (10..10 + without.len()).collect();
    write(&gone);
    kill(collector.pid(), Signal::SIGHUP).unwrap();
    eventually("some are gone", || (pools().len() == POOLS - gone.len()).then_some(()));
    asked(0..10, 10);
    assert_eq!(split().iter().flatten().count(), POOLS - gone.len());
}

/// A worker with one thread for all connections. It answers `ok` to anything but `stream`, to which it sends a byte every
/// 20 ms before that.
const STREAMS: &str = r#"
import os, select, socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
if os.fork() > 0:
    os.wait()
with open("/proc/self/comm", "w") as comm:
    comm.write("streams")
poll, clients, streams = select.epoll(), {}, {}
poll.register(server, select.EPOLLIN)
while True:
    for fd, _ in poll.poll(0.02 if streams else -1):
        if fd == server.fileno():
            client, _ = server.accept()
            clients[client.fileno()] = client
            poll.register(client, select.EPOLLIN)
            continue
        text = clients[fd].recv(100)
        if not text:
            poll.unregister(fd)
            clients.pop(fd).close()
        elif text == b"stream":
            streams[fd] = 40
            clients[fd].sendall(b".")
        else:
            clients[fd].sendall(b"ok")
    for fd in list(streams):
        streams[fd] -= 1
        if streams[fd] == 0:
            del streams[fd]
        clients[fd].sendall(b"." if fd in streams else b"ok")
"#;

/// Where the time of a request went is told of all of it or not at all.
#[test]
fn an_answer_that_goes_on_while_another_request_begins_is_not_split() {
    const CONNECTIONS: u64 = 4;
    const EACH: u64 = 25;
    let rules = "zero_config: false\npools: [{name: streams, match: {comm: streams}}]\n";
    let directory = directory_with(&[("streams.py", STREAMS), ("collector.yml", rules)]);
    let file = format!("--config.file={}", directory.path().join("collector.yml").display());
    let collector = Collector::start(&[&OPTIONS[..], &[&file]].concat());
    let port = free_port();
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["streams.py", &port.to_string()]);
    let _server = Server::start(&mut command);
    let address = format!("127.0.0.1:{port}");
    let pool = || collector.json("/api/v1/pools/streams");
    eventually("it waits for connections", || {
        matches!(pool()["workers"][0]["state"].as_str()?, "ready" | "idle").then_some(())
    });
    let waterfall = |count: u64| {
        eventually(&format!("{count} requests have ended"), || {
            let requests = pool()["requests"].clone();
            (requests["total"] == count).then(|| requests["waterfall"].clone())
        })
    };
    // What the kernel did not tell is left out.
    let are_split = |waterfall: &Value, count: u64| {
        let (split, unseen) = (waterfall["requests"].as_u64().unwrap(), collector.unseen_switches());
        println!("{split} of {count}, {unseen} switches not seen");
        assert!(split <= count && count - split <= unseen, "{split} of {count}: {waterfall}");
        waterfall["duration_seconds"].as_f64().unwrap()
    };
    let mut streamed = connect(&address);
    streamed.write_all(b"stream").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let mut quick: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(&address)).collect();
    ask(&mut quick[0], "?", "ok");
    ask(&mut streamed, "", "ok");
    drop(streamed);
    ask(&mut quick[0], "?", "ok");
    let shared = are_split(&waterfall(3), 2);
    assert!(shared < 0.1, "{shared} s");
    // Each is answered long before it is known that there is no more to come; meanwhile there are others.
    for _ in 0..EACH {
        quick.iter_mut().for_each(|stream| ask(stream, "?", "ok"));
    }
    drop(quick);
    let mut all = 3 + CONNECTIONS * EACH;
    are_split(&waterfall(all), all - 1);
    // Nobody else asks meanwhile.
    let mut streamed = connect(&address);
    ask(&mut streamed, "stream", "ok");
    drop(streamed);
    all += 1;
    let alone = are_split(&waterfall(all), all - 1) - shared;
    assert!(collector.unseen_switches() > 0 || alone > 0.7, "{alone} s");
}

/// Figures of a waterfall as they are scraped, by kind: sums, and how many values are in the histograms and how many in none.
struct Scraped {
    requests: f64,
    seconds: f64,
    sums: Vec<f64>,
    counts: Vec<f64>,
    discarded: Vec<f64>,
}

fn scraped(collector: &Collector, pool: &str) -> Scraped {
    let text = collector.text("/metrics", "text/plain");
    let its = format!("{{pool=\"{pool}\"");
    let all = |family: &str| -> Vec<f64> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix(&its));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    Scraped {
        requests: all("worker_pool_waterfall_requests_total")[0],
        seconds: all("worker_pool_waterfall_request_seconds_total")[0],
        sums: all("worker_pool_request_time_seconds_sum"),
        counts: all("worker_pool_request_time_seconds_count"),
        discarded: all("worker_pool_request_time_seconds_discarded_total"),
    }
}

#[test]
fn a_waterfall_adds_up_also_while_lengths_are_not_recorded() {
    let address = format!("127.0.0.1:{}", free_port());
    let (mut master, collector, pid, _) =
        doing_before(&["--source=ebpf", "--probes.overhead-budget=0.001"], &format!("serve {address}"));
    let name = pool(&collector, master.pid())["name"].as_str().unwrap().to_owned();
    let file = answer_file("busy");
    let busy = master.spawn(&format!("wait pingpong 100000000 {}", file.display()));
    let mut stream = connect(&address);
    let mut before: Option<Scraped> = None;
    let recording = || {
        let stats = collector.stats();
        stats["collector"]["cost"]["scheduler_probes"]["recording"].as_str().unwrap().to_owned()
    };
    let last = eventually("lengths are not recorded for a while", || {
        for _ in 0..20 {
            ask(&mut stream, "mix 1 4 2\n", "mixed\n");
        }
        let now = scraped(&collector, &name);
        let sum: f64 = now.sums.iter().sum();
        assert!((sum - now.seconds).abs() < 1e-6, "{sum} s of {} s", now.seconds);
        if let Some(before) = before.replace(scraped(&collector, &name)) {
            for (now, before) in
                now.sums.iter().chain(&now.counts).zip(before.sums.iter().chain(&before.counts))
            {
                assert!(now >= before, "{now} after {before}");
            }
        }
        let unrecorded = now.discarded[0] > 100.0;
        (unrecorded && recording() != "histograms").then_some(now)
    });
    println!("{} requests, {:?} recorded, {:?} not", last.requests, last.counts, last.discarded);
    // It is decided for a request as a whole, but for one that ends while that changes; and one may be recorded already
    // that is not counted yet.
    let near = |value: f64, other: f64| (value - other).abs() <= 2.0;
    for (count, discarded) in last.counts.iter().zip(&last.discarded) {
        assert!(near(count + discarded, last.requests), "{count} and {discarded} of {}", last.requests);
        assert!(near(*count, last.counts[0]), "{:?}", last.counts);
    }
    for pid in [busy, pid] {
        kill(pid, Signal::SIGKILL).unwrap();
    }
}

/// A worker of nginx has several requests at a time on its one thread: what it does meanwhile is of none of them.
#[test]
fn requests_that_share_their_thread_are_not_split() {
    const ALONE: u64 = 20;
    const TOGETHER: usize = 16;
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, upstream_port) = (free_port(), upstream.local_addr().unwrap().port());
    let directory = directory_with(&[]);
    let at = directory.path().display();
    let text = format!(
        "worker_processes 1;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{port};\n\
         location / {{ proxy_pass http://127.0.0.1:{upstream_port}; }} }} }}\n"
    );
    std::fs::write(directory.path().join("nginx.conf"), text).unwrap();
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "/usr/sbin/nginx", &["-g", "daemon off;"]);
    command.arg("-c").arg(directory.path().join("nginx.conf"));
    let nginx = Server::start(&mut command);
    collector.pool_of(nginx.pid(), 1);
    let address = format!("127.0.0.1:{port}");
    let ask = || {
        let mut stream = connect(&address);
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| {
        let length = stream.read(&mut [0; 4096]).unwrap();
        assert!(length > 0);
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    };
    let take = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("ok"), "{text}");
    };
    let waterfall = |count: u64| {
        eventually(&format!("{count} requests have ended"), || {
            let requests = pool_of(&collector.stats(), nginx.pid())?["requests"].clone();
            (requests["total"] == count && requests["in_flight"] == 0).then(|| requests["waterfall"].clone())
        })
    };
    let mut waited = Vec::new();
    for _ in 0..ALONE {
        let client = ask();
        let (server, _) = upstream.accept().unwrap();
        let begin = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        answer(server);
        waited.push(begin.elapsed().as_secs_f64());
        take(client);
    }
    let alone = waterfall(ALONE);
    let split = ALONE as usize - missing(&collector, &alone, ALONE as usize);
    assert!(split > 0, "{alone}");
    // It waits for its upstream where it waits for everything.
    let poll = alone["seconds"]["poll"].as_f64().unwrap();
    waited.sort_unstable_by(f64::total_cmp);
    let (least, most) =
        (waited[..split].iter().sum::<f64>(), waited[waited.len() - split..].iter().sum::<f64>());
    assert!(poll >= least * 0.95 && poll <= most * 1.05, "{least} to {most} s: {alone}");
    let clients: Vec<_> = (0..TOGETHER).map(|_| ask()).collect();
    let servers: Vec<_> = (0..TOGETHER).map(|_| upstream.accept().unwrap().0).collect();
    servers.into_iter().for_each(answer);
    clients.into_iter().for_each(take);
    let together = waterfall(ALONE + TOGETHER as u64);
    assert_eq!(together["requests"], alone["requests"], "{together}");
}
