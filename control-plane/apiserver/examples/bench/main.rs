//! What the API server does in a second, beside a kube-apiserver with its etcd if their paths are given:
//! `cargo xtask bench api -- [--kube-apiserver PATH --etcd PATH] [--rounds N] [--pods N] [--watchers N] [--idle-watchers N]
//! [--seconds S] [--dir DIR]`.
//!
//! Servers run as processes of their own, on loopback, with an empty store in DIR (default: `target`), which should be on
//! a disk. Every round begins anew with both. The table shows medians of the rounds.

mod client;
mod load;
mod servers;

use anyhow::{Context, Result, bail};
use load::Measured;
use servers::Server;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) struct Settings {
    rounds: usize,
    pub(crate) pods: usize,
    pub(crate) watchers: usize,
    pub(crate) idle_watchers: usize,
    pub(crate) seconds: f64,
    dir: PathBuf,
    peer: Option<(PathBuf, PathBuf)>,
}

fn settings() -> Result<Settings> {
    let mut out = Settings {
        rounds: 3,
        pods: 10_000,
        watchers: 1000,
        idle_watchers: 0,
        seconds: 3.0,
        dir: PathBuf::from("target"),
        peer: None,
    };
    let (mut apiserver, mut etcd) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--kube-apiserver" => apiserver = Some(PathBuf::from(value()?)),
            "--etcd" => etcd = Some(PathBuf::from(value()?)),
            "--dir" => out.dir = PathBuf::from(value()?),
            "--rounds" => out.rounds = value()?.parse().context("--rounds")?,
            "--pods" => out.pods = value()?.parse().context("--pods")?,
            "--watchers" => out.watchers = value()?.parse().context("--watchers")?,
            "--idle-watchers" => out.idle_watchers = value()?.parse().context("--idle-watchers")?,
            "--seconds" => out.seconds = value()?.parse().context("--seconds")?,
            other => bail!("{other} is no option"),
        }
    }
    out.peer = match (apiserver, etcd) {
        (None, None) => None,
        (Some(apiserver), Some(etcd)) => Some((apiserver, etcd)),
        _ => bail!("give both --kube-apiserver and --etcd, or neither"),
    };
    Ok(out)
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = settings()?;
    let dir = settings.dir.join(format!("api-bench-{}", std::process::id()));
    let outcome = rounds(&settings, &dir).await;
    let _ = std::fs::remove_dir_all(&dir);
    let (kelp, peer) = outcome?;
    print(&kelp, &peer);
    Ok(())
}

type Rows = BTreeMap<usize, (Measured, Vec<f64>)>;

fn note(rows: &mut Rows, measured: Vec<Measured>) {
    for (index, one) in measured.into_iter().enumerate() {
        let value = one.value;
        rows.entry(index).or_insert((one, Vec::new())).1.push(value);
    }
}

async fn rounds(settings: &Settings, dir: &std::path::Path) -> Result<(Rows, Rows)> {
    let (mut kelp, mut peer) = (Rows::new(), Rows::new());
    for round in 0..settings.rounds.max(1) {
        eprintln!("round {}: kelp", round + 1);
        let server = Server::kelp(&dir.join(format!("kelp-{round}"))).await?;
        note(&mut kelp, load::run(&server, settings).await?);
        server.stop().await?;
        if let Some((apiserver, etcd)) = &settings.peer {
            eprintln!("round {}: kube-apiserver", round + 1);
            let server = Server::upstream(apiserver, etcd, &dir.join(format!("peer-{round}"))).await?;
            note(&mut peer, load::run(&server, settings).await?);
            server.stop().await?;
        }
    }
    Ok((kelp, peer))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One line for each measurement; a ratio above 1 is in Kelp's favour.
fn print(kelp: &Rows, peer: &Rows) {
    println!("{:<46} {:>12} {:>14} {:>8}", "", "kelp", "kube-apiserver", "ratio");
    for (index, (measured, values)) in kelp {
        let own = median(values);
        let (other, ratio) = match peer.get(index) {
            None => ("-".to_owned(), "-".to_owned()),
            Some((_, values)) => {
                let other = median(values);
                let ratio = if measured.more_is_better { own / other } else { other / own };
                (format!("{other:.1}"), format!("{ratio:.1}x"))
            }
        };
        println!(
            "{:<46} {own:>12.1} {other:>14} {ratio:>8}",
            format!("{} ({})", measured.name, measured.unit)
        );
    }
}
