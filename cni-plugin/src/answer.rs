//! Stdout belongs to the CNI result: exactly one result or one error object is written there, whatever happens.

use crate::log;
use sluice_shared::cni::{CniError, LogLevel, NetConfError, SpecVersion, code};
use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a verb that succeeded prints.
pub enum Answer {
    /// Nothing: DEL, CHECK, GC, STATUS.
    Silence,
    /// These bytes and no others: ADD, VERSION.
    Print(String),
}

/// Why a verb failed.
#[derive(Debug)]
pub struct Failure {
    /// A [`code`].
    pub code: u32,
    /// One line: what happened, to what, why, what to do.
    pub msg: String,
    /// More, for a log.
    pub details: String,
    /// The spec version of the error object: the netconf's, once it is known.
    pub version: SpecVersion,
}

/// Whether somebody has begun to write on stdout.
static CLAIMED: AtomicBool = AtomicBool::new(false);

impl Failure {
    /// A failure with a code and a line.
    pub fn new(code: u32, msg: impl Display) -> Self {
        Self { code, msg: msg.to_string(), details: String::new(), version: SpecVersion::LATEST }
    }

    /// The same, said in the netconf's version.
    pub fn in_version(self, version: SpecVersion) -> Self {
        Self { version, ..self }
    }

    fn object(self) -> String {
        let error = CniError {
            cni_version: self.version.to_string(),
            code: self.code,
            msg: self.msg,
            details: self.details,
        };
        // A struct of strings and a number cannot fail to serialise; the fallback keeps panics out of this path.
        serde_json::to_string(&error).unwrap_or_else(|_| format!(r#"{{"code":{}}}"#, code::INTERNAL))
    }
}

impl From<NetConfError> for Failure {
    fn from(e: NetConfError) -> Self {
        Self::new(e.code(), &e)
    }
}

/// Writes the outcome, once, and gives the exit status.
pub fn deliver(outcome: Result<Answer, Failure>) -> ExitCode {
    let (text, status) = match outcome {
        Ok(Answer::Silence) => return ExitCode::SUCCESS,
        Ok(Answer::Print(text)) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.object(), ExitCode::FAILURE),
    };
    match claim().then(|| write_all(io::stdout(), text.as_bytes())) {
        Some(Ok(())) => status,
        Some(Err(e)) => {
            log::to_stderr(LogLevel::Error, &format!("cannot write the result to stdout: {e}"));
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

/// Makes every panic end as an error object with code 104, and never as half a result. A DEL that panics succeeds:
/// the sandbox goes away all the same, and an error would keep it.
pub fn turn_panics_into_errors() {
    std::panic::set_hook(Box::new(|panic| {
        let msg = log::one_line(&describe(panic));
        log::to_stderr(LogLevel::Error, &msg);
        if std::env::var_os("CNI_COMMAND").is_some_and(|verb| verb == "DEL") {
            std::process::exit(0);
        }
        if claim() {
            let object = Failure::new(code::INTERNAL, msg).object();
            let _ = write_all(io::stdout(), object.as_bytes());
        }
        std::process::exit(1);
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let said = panic.payload();
    let said =
        said.downcast_ref::<&str>().copied().or_else(|| said.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("no message");
    format!("sluice-cni failed inside, at {place}: {said}; please report it (a bug in Sluice)")
}

/// True for the first caller only.
fn claim() -> bool {
    !CLAIMED.swap(true, Ordering::SeqCst)
}

/// Past Rust's own stdout, whose buffer splits what it writes at newlines.
fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Output};

    /// Runs one of the tests below in a process of its own, since a panic ends it.
    fn in_a_process_of_its_own(test: &str, verb: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("answer::tests::{test}"),
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("CNI_COMMAND", verb)
            .output()
            .unwrap()
    }

    /// The lines of stdout that are ours and not the test runner's.
    fn objects(output: &Output) -> Vec<CniError> {
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        let begins = stdout.match_indices("{\"cniVersion\"").map(|(at, _)| at);
        begins.map(|at| serde_json::from_str(&stdout[at..]).unwrap()).collect()
    }

    #[test]
    #[ignore = "run by a_panic_becomes_one_error_object"]
    fn panics() {
        turn_panics_into_errors();
        panic!("the \"quoted\"\nreason");
    }

    #[test]
    #[ignore = "run by a_panic_after_the_result_prints_nothing_more"]
    fn panics_after_the_result() {
        turn_panics_into_errors();
        let _ = deliver(Err(Failure::new(code::TRY_AGAIN_LATER, "first")));
        panic!("second");
    }

    #[test]
    fn a_panic_becomes_one_error_object() {
        let output = in_a_process_of_its_own("panics", "ADD");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let [error] = &objects(&output)[..] else { panic!("{output:?}") };
        assert_eq!(error.code, code::INTERNAL);
        assert!(
            error.msg.contains(r#"the "quoted"\u{a}reason"#) && error.msg.contains("answer.rs"),
            "{error:?}"
        );
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.matches("sluice-cni: error: ").count(), 1, "{stderr}");
    }

    #[test]
    fn a_panic_after_the_result_prints_nothing_more() {
        let output = in_a_process_of_its_own("panics_after_the_result", "ADD");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let [error] = &objects(&output)[..] else { panic!("{output:?}") };
        assert_eq!(error.msg, "first");
    }

    #[test]
    fn a_del_that_panics_succeeds_and_prints_nothing() {
        let output = in_a_process_of_its_own("panics", "DEL");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(objects(&output).is_empty(), "{output:?}");
    }
}
