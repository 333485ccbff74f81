//! `collector` sees inside worker processes from outside.
pub mod aggregate;
pub mod app;
pub mod auth;
pub mod collect;
pub mod config;
pub mod doctor;
pub mod histogram;
pub mod http;
pub mod input;
pub mod kernel;
pub mod privileges;
pub mod procfs;
pub mod render;
pub mod snapshot;
pub mod source;
pub mod units;
pub mod worker;
