//! A light HTTP/1.1 client: one kept connection, bodies counted and thrown away unless they are wanted.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// What a client says it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Gzip,
}

impl Coding {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
        }
    }
}

pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    line: String,
}

/// Status and length of the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) length: usize,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(256 << 10, stream), line: String::new() })
    }

    /// Asks and reads the whole answer.
    pub(crate) fn get(&mut self, path: &str, coding: Coding) -> anyhow::Result<Answer> {
        self.ask(path, coding, &mut |_| ())
    }

    /// The body as text.
    pub(crate) fn text(&mut self, path: &str) -> anyhow::Result<String> {
        let mut body = Vec::new();
        let answer = self.ask(path, Coding::Plain, &mut |bytes| body.extend_from_slice(bytes))?;
        if answer.status != 200 {
            bail!("{path} answered {}", answer.status);
        }
        Ok(String::from_utf8(body)?)
    }

    fn ask(&mut self, path: &str, coding: Coding, body: &mut dyn FnMut(&[u8])) -> anyhow::Result<Answer> {
        let accepts = match coding {
            Coding::Plain => "",
            Coding::Gzip => "Accept-Encoding: gzip\r\n",
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{accepts}\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.head_line()?.split(' ').nth(1).context("a status line")?.parse()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.head_line()?;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.trim().eq_ignore_ascii_case("chunked");
            }
        }
        if !chunked {
            self.body(length, body)?;
            return Ok(Answer { status, length });
        }
        loop {
            let chunk = usize::from_str_radix(self.head_line()?, 16).context("the length of a chunk")?;
            self.body(chunk, body)?;
            self.head_line()?;
            length += chunk;
            if chunk == 0 {
                return Ok(Answer { status, length });
            }
        }
    }

    fn head_line(&mut self) -> anyhow::Result<&str> {
        self.line.clear();
        if self.stream.read_line(&mut self.line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(self.line.trim_end())
    }

    fn body(&mut self, mut left: usize, take: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        while left > 0 {
            let buffered = self.stream.fill_buf()?;
            let length = buffered.len().min(left);
            if length == 0 {
                bail!("the connection was closed within a body");
            }
            take(&buffered[..length]);
            self.stream.consume(length);
            left -= length;
        }
        Ok(())
    }
}

/// Answers and their latencies, ascending.
pub(crate) struct Load {
    pub(crate) latencies: Vec<Duration>,
    pub(crate) took: Duration,
}

impl Load {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that this share of answers did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies[rank.clamp(1, self.latencies.len()) - 1]
    }
}

/// Asks over so many kept connections as fast as answers come, until the time is over.
pub(crate) fn load(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    coding: Coding,
) -> anyhow::Result<Load> {
    let began = Instant::now();
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            std::thread::spawn(move || -> anyhow::Result<Vec<Duration>> {
                let mut client = Client::connect(address)?;
                let mut latencies = Vec::new();
                while began.elapsed() < time {
                    let asked = Instant::now();
                    let answer = client.get("/metrics", coding)?;
                    if answer.status != 200 {
                        bail!("/metrics answered {} under load", answer.status);
                    }
                    latencies.push(asked.elapsed());
                }
                Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
    }
    // Until the last answer, which may be long after the time was over.
    let took = began.elapsed();
    latencies.sort_unstable();
    Ok(Load { latencies, took })
}
