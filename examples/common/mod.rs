//! What the examples share: where a node is, as the command line says, and processes that run the same program again.
#![allow(dead_code, reason = "each example uses a part")]

use std::error::Error;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use distribute::{Builder, Config, Cookie, Identity, NamePolicy, Node};
use pico_args::Arguments;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Every wait of an example that runs by itself ends by then; none comes near it unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Prints a line at once, and does not mind when nobody reads on.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::common::print(&format!($($text)*))
    };
}
pub(crate) use say;

pub(crate) fn print(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// How an example ends: with the whole story of its error, if there is one.
pub(crate) fn end(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes: each level prints only itself.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Where a node is, and how it finds the others.
pub(crate) struct Place {
    name: String,
    cookie_file: Option<PathBuf>,
    pki: Option<PathBuf>,
    join: Vec<String>,
    cluster: Option<String>,
    bind: Option<SocketAddr>,
    config: Config,
}

impl Place {
    /// What the options mean, for `--help`.
    pub(crate) const OPTIONS: &str = "\
  --name NAME          the node: local@host:port. The others dial this host; without a port it is 4370, 0 is any
  --cookie-file FILE   the cookie, the same on all hosts, readable by its owner only; the first node makes one
  --pki DIR            certificates in place of the cookie, or beside it: ca.pem, and the node's own as `certs` makes them
  --join NAME          a node of the cluster, as often as you like; without it the node begins a cluster
  --cluster NAME       the cluster's name, the same on all nodes
  --bind ADDRESS       binds this address and port, and not the name's
  --preset NAME        lan, wan, or local: how soon silence is taken for death";

    /// Takes these options out of the command line; `None` when no name is given.
    pub(crate) fn take(arguments: &mut Arguments) -> Result<Option<Self>> {
        let Some(name) = arguments.opt_value_from_str("--name")? else { return Ok(None) };
        let preset: Option<String> = arguments.opt_value_from_str("--preset")?;
        let config = match preset.as_deref().unwrap_or("lan") {
            "lan" => Config::lan(),
            "wan" => Config::wan(),
            "local" => Config::local(),
            other => return Err(format!("no preset is called {other}").into()),
        };
        Ok(Some(Self {
            name,
            cookie_file: path(arguments, "--cookie-file")?,
            pki: path(arguments, "--pki")?,
            join: arguments.values_from_str("--join")?,
            cluster: arguments.opt_value_from_str("--cluster")?,
            bind: arguments.opt_value_from_str("--bind")?,
            config,
        }))
    }

    /// The name as it was given.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What it shows to be taken for a member.
    fn identity(&self) -> Result<Identity> {
        let cookie = match &self.cookie_file {
            None => None,
            // Who joins others has their cookie already: a fresh one would be refused.
            Some(file) if self.join.is_empty() => Some(Cookie::load_or_generate(file)?),
            Some(file) => Some(Cookie::load(file)?),
        };
        let certificates = self.pki.as_ref().map(|directory| {
            let own = self.name.replace(':', "_");
            let [certificate, key] = ["pem", "key"].map(|end| directory.join(format!("{own}.{end}")));
            Identity::from_pem(directory.join("ca.pem"), certificate, key)
        });
        match (certificates.transpose()?, cookie) {
            (None, None) => Err("--cookie-file or --pki is required; see --help".into()),
            (None, Some(cookie)) => Ok(cookie.into()),
            (Some(certificates), None) => Ok(certificates.names(NamePolicy::SanUri)),
            (Some(certificates), Some(cookie)) => Ok(certificates.names(NamePolicy::SanUri).with_cookie(cookie)),
        }
    }

    /// Begins to describe the node.
    pub(crate) fn builder(&self) -> Result<Builder> {
        let mut builder = Node::builder(&self.name).identity(self.identity()?).config(self.config.clone());
        for name in &self.join {
            builder = builder.join(name);
        }
        if let Some(cluster) = &self.cluster {
            builder = builder.cluster(cluster);
        }
        if let Some(address) = self.bind {
            builder = builder.bind(address);
        }
        Ok(builder)
    }
}

fn path(arguments: &mut Arguments, option: &'static str) -> Result<Option<PathBuf>> {
    Ok(arguments.opt_value_from_os_str(option, |path| Ok::<_, String>(path.into()))?)
}

/// Complains of what is left of the command line.
pub(crate) fn done(arguments: Arguments) -> Result<()> {
    match &*arguments.finish() {
        [] => Ok(()),
        rest => Err(format!("not understood: {rest:?}; see --help").into()),
    }
}

/// The lines of the standard input; an example ends when they end. A thread waits for them, so that the end of the process need not.
pub(crate) fn input() -> mpsc::Receiver<String> {
    let (lines, input) = mpsc::channel(1);
    std::thread::spawn(move || {
        let typed = std::io::stdin().lock().lines().map_while(Result::ok);
        for line in typed {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    input
}

/// A cluster on this host, for an example that runs by itself: its nodes are processes that run this program again.
pub(crate) struct Stage {
    directory: TempDir,
    join: Option<String>,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir()?, join: None })
    }

    /// The options of one more node, as they would be typed: it joins the first one.
    pub(crate) fn options(&self, name: &str) -> Vec<OsString> {
        let cookie_file = self.directory.path().join("cookie").into_os_string();
        let mut options: Vec<OsString> = ["--name", name, "--preset", "local", "--cookie-file"].map(Into::into).into();
        options.push(cookie_file);
        options.extend(self.join.iter().flat_map(|join| ["--join".into(), join.into()]));
        options
    }

    /// Starts a node, `local` or `local@host:port`, in a process of its own, and waits for its first line: `node NAME`.
    pub(crate) async fn start(&mut self, name: &str, more: &[&str]) -> Result<Process> {
        let title = name.split('@').next().unwrap_or_default().to_owned();
        let name = if name.contains('@') { name.to_owned() } else { format!("{name}@127.0.0.1:0") };
        let mut child = Command::new(std::env::current_exe()?)
            .args(self.options(&name))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("a child has no output")?).lines();
        let mut process = Process { title, node: name, child, input, output };
        process.node = process.until("its name", |line| line.strip_prefix("node ").map(str::to_owned)).await?;
        self.join.get_or_insert_with(|| process.node.clone());
        Ok(process)
    }
}

/// A node in a process of its own. It is killed when this is dropped, and ends when its parent does.
pub(crate) struct Process {
    title: String,
    /// The node's name.
    pub(crate) node: String,
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Types a line.
    pub(crate) async fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or("the process is ended")?;
        say!("{:>8} < {line}", self.title);
        input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(input.flush().await?)
    }

    /// Reads until a line holds this text, and prints what it reads.
    pub(crate) async fn expect(&mut self, text: &str) -> Result<String> {
        self.until(text, |line| line.contains(text).then(|| line.to_owned())).await
    }

    /// Reads until a line is wanted, and prints what it reads.
    pub(crate) async fn until<T>(&mut self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        let Self { title, output, .. } = self;
        let reading = async {
            while let Some(line) = output.next_line().await? {
                say!("{title:>8} | {line}");
                if let Some(found) = wanted(&line) {
                    return Ok(found);
                }
            }
            Err(format!("{title} ended, and had not said: {what}").into())
        };
        let late = |_| format!("{title} has not said within {PATIENCE:?}: {what}");
        tokio::time::timeout(PATIENCE, reading).await.map_err(late)?
    }

    /// Sends it a signal: `STOP` freezes it, `CONT` lets it go on.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().ok_or("the process has ended")?;
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {id}")]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("{} got no {signal}", self.title).into()) }
    }

    /// Kills it: it says no good-bye.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Closes its standard input, on which it leaves in good order, and prints what it says until then.
    pub(crate) async fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let ending = async {
            while let Some(line) = self.output.next_line().await? {
                say!("{:>8} | {line}", self.title);
            }
            let status = self.child.wait().await?;
            if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", self.title).into()) }
        };
        tokio::time::timeout(PATIENCE, ending).await.map_err(|_| format!("{} does not end", self.title))?
    }
}
