//! The command line, made from the table of keys.

use super::env::Env;
use super::keys::{Default, KEYS, Key};
use super::raw::FILE_VARIABLE;
use super::value::Kind;
use clap::builder::styling::Styles;
use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// What to do.
    pub mode: Mode,
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The keys that are set by flag.
    pub(super) flags: Vec<(&'static Key, String)>,
}

/// What the agent is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To be the agent.
    Run,
    /// To print the configuration in force, and where each value comes from.
    PrintConfig,
    /// To print docs/config.md.
    PrintConfigDocs,
}

impl Invocation {
    /// Reads a command line, program name first.
    ///
    /// # Errors
    /// clap's: also `--help` and `--version`, which are to be printed.
    pub fn parse<I>(args: I, env: &dyn Env) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        let matches = command().try_get_matches_from(args)?;
        let mode = match (matches.get_flag("print-config"), matches.get_flag("print-config-docs")) {
            (_, true) => Mode::PrintConfigDocs,
            (true, _) => Mode::PrintConfig,
            _ => Mode::Run,
        };
        let named = matches.get_one::<PathBuf>("config").cloned();
        let file =
            named.or_else(|| env.var(FILE_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
        let flags = KEYS
            .iter()
            .filter_map(|key| matches.get_one::<String>(key.name).map(|text| (key, text.clone())))
            .collect();
        Ok(Self { mode, file, flags })
    }
}

fn command() -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!("The configuration, in YAML [environment: {FILE_VARIABLE}]"));
    let print = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("sluice-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The node agent of Sluice: takes the pods of this node into the mesh, and keeps them there")
        .after_help(
            "Every key can be set in the file, as a variable and as a flag; the later wins. \
             Exit codes: 0 ended as asked, 64 the configuration is wrong, 1 anything else.",
        )
        .styles(Styles::plain())
        .arg(config)
        .arg(print(
            "print-config",
            "Print the configuration in force and where each value comes from, and end",
        ))
        .arg(print("print-config-docs", "Print the reference of all keys in Markdown, and end"))
        .args(KEYS.iter().map(argument))
}

fn argument(key: &'static Key) -> Arg {
    let default = match key.default {
        Default::Text("") => String::new(),
        Default::Text(text) => format!(" [default: {text}]"),
        Default::Computed(_, words) => format!(" [default: {words}]"),
    };
    let allowed = match &key.kind {
        kind @ (Kind::Word(_) | Kind::Number(_) | Kind::Selectors) => format!(" [{}]", kind.allowed()),
        _ => String::new(),
    };
    let arg = Arg::new(key.name)
        .long(key.flag())
        .value_name(placeholder(&key.kind))
        .allow_hyphen_values(true)
        .help(format!("{}{allowed}{default}", key.doc));
    match key.kind {
        Kind::Flag => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    }
}

fn placeholder(kind: &Kind) -> &'static str {
    match kind {
        Kind::Word(_) => "WORD",
        Kind::Flag => "true|false",
        Kind::Number(_) => "NUMBER",
        Kind::Path | Kind::OptionalPath | Kind::Socket | Kind::AutoOrPath | Kind::AutoPathOrNone => "PATH",
        Kind::Paths => "PATH,PATH",
        Kind::Ipv4 | Kind::Ipv6 => "ADDRESS",
        Kind::Listen => "ADDRESS:PORT",
        Kind::NodeName | Kind::OptionalName => "NAME",
        Kind::Namespaces => "NAME,NAME",
        Kind::Selectors => "YAML",
        Kind::LogFilter => "FILTER",
        Kind::TaintKeys => "KEY,KEY",
    }
}
