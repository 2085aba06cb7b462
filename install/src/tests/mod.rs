//! The installer on a simulated disk: at each single write the program is killed, the power fails, the disk is full, or
//! somebody else writes; after it pods start, nothing of theirs is lost, and the next run puts things right.

mod installing;
mod leaving;
mod node;
mod others;
