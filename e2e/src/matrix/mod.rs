//! The support matrix: each primary CNI as a cell, the same checks in every cell, and what came of them.
//!
//! | room | what it holds |
//! |---|---|
//! | [`describe`], [`words`], [`axes`] | what a cell is, from its file; how it is varied |
//! | [`side`], [`emulate`], [`faults`] | what is done to network namespaces |
//! | [`programs`] | a primary's own programs |
//! | [`stage`], `places`, `pods` | a standing cell |
//! | [`checks`], [`snapshot`] | what is looked at |
//! | [`run`], [`workers`] | running a cell; running all of them |
//! | [`record`], [`results`] | what came of it, in full and in short |
//! | [`page`], [`picture`] | the support matrix for people |

pub mod axes;
pub mod checks;
pub mod describe;
pub mod emulate;
pub mod faults;
pub mod page;
pub mod picture;
mod places;
mod pods;
pub mod programs;
pub mod record;
pub mod results;
pub mod run;
pub mod side;
pub mod snapshot;
pub mod stage;
pub mod words;
pub mod workers;
