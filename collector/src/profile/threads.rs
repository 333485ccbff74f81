//! What all threads of some workers do at one moment.

use std::sync::Arc;

use super::Profile;

/// Threads of one moment: of each a sample, and what a sample has no place for.
#[derive(Clone, Debug)]
pub struct Dump {
    /// A sample and labels for each thread. Of [`super::Kind::Threads`].
    pub profile: Profile,
    /// In the order of [`Profile::labels`].
    pub threads: Vec<Thread>,
}

/// What else is known of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Thread {
    /// The innermost function of the kernel that it waits in.
    pub wait_channel: Option<Arc<str>>,
    /// The system call that it is in, by its name or number.
    pub syscall: Option<Arc<str>>,
    /// Why it has no frames of the kernel.
    pub no_kernel_frames: Option<Arc<str>>,
    /// Why it has no frames of its program.
    pub no_user_frames: Option<Arc<str>>,
}
