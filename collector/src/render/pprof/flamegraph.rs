//! A flame graph, as inferno draws it from folded stacks.
//!
//! Its colours are those of mixed-mode flame graphs on CPU and of the wall clock (kernel, inlined, C++, other), blue for
//! waits and green for memory as is the custom; frames of one name have one colour, in this graph and the next.

use std::io::{self, Write};

use inferno::flamegraph::color::{BasicPalette, MultiPalette, Palette};
use inferno::flamegraph::{self, Options};

use super::frames::{acts, clipped, samples};
use super::{Error, Format, Measure, duration, folded, remarks};
use crate::profile::{Kind, Profile};

/// Bytes that a graph may have: more are nothing that a browser likes to show.
pub(super) const LARGEST: usize = 8 << 20;

/// What a browser may do with the graph, for the header of this name.
///
/// It may run the one script that the graph has, which unfolds it to the width of its window, zooms and searches, and
/// no other: names come from strangers. Nothing is loaded, and the sandbox keeps even that script from what the origin
/// has. Dialogs are for the search.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'sha256-1PFDkwEewv3IzZ33THoq4nuQL9bVdmrY7jQO+5XUI5s=' \
    'unsafe-hashes' 'sha256-WiAVSnuYekflqQvM3Bgx4QYmF4g+iml28eRUaqE8Qeo='; \
    frame-ancestors 'self'; sandbox allow-scripts allow-modals";

/// Percent of the width below which frames are left out, as long as what is left is too large. The first is inferno's.
const NARROWEST: [f64; 5] = [flamegraph::defaults::MIN_WIDTH, 0.1, 1.0, 10.0, 100.0];

/// Draws a profile.
pub(super) fn render(profile: &Profile) -> Result<Vec<u8>, Error> {
    let mut total = 0;
    let lines: Vec<String> = folded::stacks(profile)
        .map(|(stack, value)| {
            total += value;
            format!("{stack} {value}")
        })
        .collect();
    if total == 0 {
        return Ok(nothing(profile).into_bytes());
    }
    for narrowest in NARROWEST {
        let mut options = options(profile, narrowest);
        let mut out = Limited { bytes: Vec::new(), exceeded: false };
        let result = flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut out);
        if !out.exceeded {
            return result
                .map(|()| out.bytes)
                .map_err(|source| Error::Write { format: Format::FlameGraph, source });
        }
    }
    Err(Error::TooLarge)
}

fn options(profile: &Profile, narrowest: f64) -> Options<'static> {
    let mut options = Options::default();
    options.title = title(profile);
    let mut subtitle = remarks(profile);
    if narrowest > NARROWEST[0] {
        subtitle.push(format!("frames narrower than {narrowest} % are left out"));
    }
    options.subtitle = (!subtitle.is_empty()).then(|| subtitle.join(", "));
    options.count_name = folded::unit(profile.kind).to_owned();
    options.colors = match profile.kind {
        Kind::OnCpu | Kind::Cycles | Kind::Wall | Kind::Threads => Palette::Multi(MultiPalette::Java),
        Kind::OffCpu | Kind::RunQueue => Palette::Basic(BasicPalette::Blue),
        Kind::Heap => Palette::Basic(BasicPalette::Mem),
    };
    options.deterministic = true;
    options.min_width = narrowest;
    options
}

/// Whose profile it is, of what, and how long it took.
fn title(profile: &Profile) -> String {
    let mut pools: Vec<&str> = samples(profile).map(|(_, labels)| &*labels.pool).collect();
    pools.sort_unstable();
    pools.dedup();
    let whose = match pools[..] {
        [] | [""] => String::new(),
        [pool] => format!("{}: ", clipped(pool).replace(acts, "\u{fffd}")),
        _ => format!("{} pools: ", pools.len()),
    };
    let name = Measure::of(profile.kind).name;
    match profile.kind {
        Kind::Threads | Kind::Heap if profile.duration_ns == 0 => format!("{whose}{name}"),
        _ => format!("{whose}{name}, {:?}", duration(profile.duration_ns)),
    }
}

/// A graph without frames, which inferno takes for a mistake.
fn nothing(profile: &Profile) -> String {
    let what = Measure::of(profile.kind);
    format!(
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg version=\"1.1\" width=\"1200\" height=\"60\" xmlns=\"http://www.w3.org/2000/svg\">\
         <text x=\"10\" y=\"36\" font-family=\"monospace\" font-size=\"12\">{}, {:?}: no {}</text></svg>\n",
        what.name,
        duration(profile.duration_ns),
        what.counted,
    )
}

/// Takes only so much.
struct Limited {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > LARGEST {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
