//! The installer on a simulated disk: at each single write the program is killed, the power fails, or the disk is full;
//! after it pods start, and the next run puts things right.

mod installing;
mod leaving;
mod node;
