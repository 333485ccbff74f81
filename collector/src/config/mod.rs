//! What was typed ([`cli`]), what the files say ([`mod@file`], [`web`]), and the validated result.

pub mod cli;
pub mod file;
pub mod web;

use crate::aggregate;
use cli::Flags;
use file::{FileConfig, FileError};
use web::WebConfig;

/// Reads the configuration file, if one was named; otherwise the built-in defaults.
pub fn load_file(flags: &Flags) -> Result<FileConfig, FileError> {
    flags.config_file.as_deref().map_or_else(|| Ok(FileConfig::default()), file::load)
}

/// Reads the web configuration file, if one was named; otherwise plain HTTP without authentication.
pub fn load_web(flags: &Flags) -> Result<WebConfig, web::Error> {
    flags.web_config_file.as_deref().map_or_else(|| Ok(WebConfig::default()), web::load)
}

impl FileConfig {
    /// What the aggregator needs of it.
    pub fn aggregate(&self) -> aggregate::Config {
        aggregate::Config {
            matcher: self.matcher.clone(),
            zero_config: self.zero_config,
            interval_ns: self.interval_ns,
            profile: self.profile,
            flags: self.flags,
            max_pools: self.max_pools,
            max_listed_workers: self.max_workers,
            exits_kept: self.exits_kept,
        }
    }
}
