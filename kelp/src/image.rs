//! `kelp image`: the node's images, also while the agent runs.

use crate::cli::{ImageCommand, ProgressForm};
use crate::node::image_dir;
use anyhow::{Context, Error, Result};
use kelp_agent::image::registry::{CredentialProviders, Keyring, Progress, Puller, RegistryConfig};
use kelp_agent::image::{Image, ImageStore};
use std::io::{IsTerminal, Write};

/// Runs a subcommand.
///
/// # Errors
/// Fails if the store cannot be used or there is no such image or archive.
pub fn run(command: &ImageCommand) -> Result<()> {
    let open = |data: &crate::cli::DataArgs| ImageStore::open(&image_dir(&data.data_dir));
    // Not locked: a pull tells how far it is from other threads.
    let mut out = std::io::stdout();
    match command {
        ImageCommand::Import { data, archive } => {
            for image in open(data)?.import(archive, None)? {
                writeln!(out, "{}", title(&image))?;
            }
        }
        ImageCommand::Pull { data, registries, auth_file, progress, image } => {
            let config = RegistryConfig::load(registries).map_err(Error::msg)?;
            let mut keyring = Keyring::default();
            if let Some(file) = auth_file {
                let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                keyring.add_secret(&[(".dockerconfigjson".to_owned(), text)].into());
            }
            let puller = Puller::new(open(data)?, config, CredentialProviders::default());
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let form = progress.unwrap_or(match std::io::stderr().is_terminal() {
                true => ProgressForm::Plain,
                false => ProgressForm::None,
            });
            let tell = |step: Progress| {
                // Whoever closed the stream does not want to be told.
                let _ = match form {
                    ProgressForm::Plain => writeln!(std::io::stderr(), "{}", line(&step)),
                    ProgressForm::Json => serde_json::to_string(&step)
                        .map_err(std::io::Error::from)
                        .and_then(|step| writeln!(std::io::stdout(), "{step}")),
                    ProgressForm::None => Ok(()),
                };
            };
            let pulled = runtime.block_on(puller.pull_telling(image, &keyring, &tell))?;
            if form == ProgressForm::Json {
                let names = &pulled.names;
                let done = serde_json::json!({"step": "pulled", "id": pulled.id, "names": names, "size": pulled.size});
                writeln!(std::io::stdout(), "{done}")?;
                return Ok(());
            }
            writeln!(out, "{}", title(&pulled))?;
        }
        ImageCommand::Ls { data } => {
            for image in open(data)?.list()? {
                writeln!(out, "{}\t{}", title(&image), image.id)?;
            }
        }
        ImageCommand::Rm { data, image } => open(data)?.remove(image)?,
        ImageCommand::Prune { data } => {
            for removed in open(data)?.prune(|image| !image.names.is_empty())? {
                writeln!(out, "{removed}")?;
            }
        }
    }
    Ok(())
}

/// What a user calls the image.
fn title(image: &Image) -> String {
    if image.names.is_empty() { image.id.clone() } else { image.names.join(" ") }
}

/// A step of a pull for people; layers by the first 12 digits of their digests.
fn line(step: &Progress) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let short = |digest: &str| digest.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    match step {
        Progress::Resolved { digest, layers, missing, bytes } => {
            format!("{digest}: {missing} of {layers} layers to download, {:.1} MiB", mib(*bytes))
        }
        Progress::Downloading { digest, done, size: 0 } => {
            format!("{}: downloading, {:.1} MiB", short(digest), mib(*done))
        }
        Progress::Downloading { digest, done, size } => {
            format!("{}: downloading, {:.1} of {:.1} MiB", short(digest), mib(*done), mib(*size))
        }
        Progress::Downloaded { digest, size } => {
            format!("{}: downloaded, {:.1} MiB", short(digest), mib(*size))
        }
        Progress::Unpacking => "unpacking".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_as_people_read_them() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let step = Progress::Downloading { digest: digest.clone(), done: 3 << 19, size: 3 << 20 };
        assert_eq!(line(&step), "0123456789ab: downloading, 1.5 of 3.0 MiB");
        let step = Progress::Downloading { digest, done: 1 << 20, size: 0 };
        assert_eq!(line(&step), "0123456789ab: downloading, 1.0 MiB");
        assert_eq!(line(&Progress::Unpacking), "unpacking");
    }
}
