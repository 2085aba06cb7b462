//! The real binary as a runtime runs it, against a scripted agent on a socket of its own. Each pod's namespace is a
//! real one, made by `unshare`; nothing is done to the machine's own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

mod agent_answers;
mod chain;
mod del;
mod fallback;
mod hostile;
mod runtime;
mod scripted;
mod verbs;
