//! What the targets share. Each is a binary of its own, as libFuzzer wants it, and stands in `targets` in one line;
//! `cargo xtask fuzz` runs them.

use std::path::PathBuf;

use collector::fuzz::{TARGETS, Target};

/// The binary of one target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<&collector::fuzz::Target> =
            std::sync::LazyLock::new(|| $crate::find($name));
        libfuzzer_sys::fuzz_target!(init: $crate::begin(&TARGET), |bytes: &[u8]| (TARGET.run)(bytes));
    };
}

/// The target of this name.
pub fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of `collector::fuzz`")
}

/// Puts what is real where libFuzzer looks for what to begin with: in the last directory of its command line.
pub fn begin(target: &Target) {
    let Some(corpus) = std::env::args_os().map(PathBuf::from).filter(|path| path.is_dir()).last() else {
        return;
    };
    for (number, input) in (target.inputs)().iter().enumerate() {
        if let Err(error) = std::fs::write(corpus.join(format!("real-{number}")), input) {
            eprintln!("{}: {error}", corpus.display());
        }
    }
}
