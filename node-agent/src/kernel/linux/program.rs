//! Running a program in the calling thread's network namespace, for the iptables backend only.

use crate::kernel::KernelError;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take, waiting for the xtables lock included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of what it says is kept, in bytes.
const OUTPUT_KEPT: u64 = 1024 * 1024;

/// How a program ended, and what it said.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stderr: String,
}

/// How the call of a program is named in errors.
const RUN: &str = "run ";

/// Whether a program could not be run because it is not there, as in an image of ours, which has none.
pub(super) fn is_missing(error: &KernelError) -> bool {
    matches!(error, KernelError::Call { call, source, .. }
        if call.starts_with(RUN) && source.kind() == io::ErrorKind::NotFound)
}

/// Runs it to its end. Its input and what it complains of are files in memory, so that neither side can block the other.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<Ended, KernelError> {
    let call = || format!("{RUN}{program} {}", arguments.join(" "));
    let failed = |source: io::Error, detail: String| KernelError::Call { call: call(), source, detail };
    let outcome = (|| {
        let (stdin, mut stderr) = (memory_file(input)?, memory_file("")?);
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr.try_clone()?))
            .spawn()?;
        let status = wait(&mut child)?;
        Ok((status, contents(&mut stderr)?))
    })();
    match outcome {
        Ok((Some(status), stderr)) => Ok(Ended { status, stderr }),
        Ok((None, stderr)) => Err(failed(
            io::Error::from_raw_os_error(libc::ETIMEDOUT),
            format!("it was ended after {} s; it said: {stderr}", TIMEOUT.as_secs()),
        )),
        Err(error) => Err(failed(error, String::new())),
    }
}

/// `None` when it had to be killed.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    // A restore takes a few milliseconds: look often at first.
    let mut pause = Duration::from_micros(200);
    while begun.elapsed() < TIMEOUT {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn memory_file(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"sluice", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn contents(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_KEPT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
