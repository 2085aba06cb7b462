//! A container runtime's side of CNI: [`list`] reads network lists, [`runner`] runs their plugins as libcni does, and
//! [`chains`] are the lists that primary CNIs leave on a node.

pub mod chains;
pub mod error;
pub mod list;
pub mod runner;

pub use error::CniError;
pub use list::NetworkList;
pub use runner::{Attachment, Runner};
