//! The agent's part in the installation, which is `sluice-install`'s otherwise: what that one cannot know is found out here
//! and written down for it, and what it writes down is shown to the cluster. They meet in files only
//! ([`sluice_shared::install`]).

mod ending;

pub use ending::Ending;
