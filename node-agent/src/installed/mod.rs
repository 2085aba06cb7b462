//! The agent's part in the installation, which is `sluice-install`'s otherwise: what that one cannot know is found out here
//! and written down for it, and what it writes down is shown to the cluster. They meet in files only
//! ([`sluice_shared::install`]). docs/decisions/0010-the-agent-and-the-installation.md says why it is as it is.

mod course;
mod ending;
mod look;
mod runtime;
mod taint;

pub use ending::{Ending, is_leaving};
pub use look::{Looker, Standing, Teller};
pub use runtime::keep_runtime;
pub use taint::{Serving, Taints};
