//! `kelp image`: the node's images, also while the agent runs.

use crate::cli::ImageCommand;
use crate::node::image_dir;
use anyhow::{Context, Error, Result};
use kelp_agent::image::registry::{CredentialProviders, Keyring, Puller, RegistryConfig};
use kelp_agent::image::{Image, ImageStore};
use std::io::Write;

/// Runs a subcommand.
///
/// # Errors
/// Fails if the store cannot be used or there is no such image or archive.
pub fn run(command: &ImageCommand) -> Result<()> {
    let open = |data: &crate::cli::DataArgs| ImageStore::open(&image_dir(&data.data_dir));
    let mut out = std::io::stdout().lock();
    match command {
        ImageCommand::Import { data, archive } => {
            for image in open(data)?.import(archive, None)? {
                writeln!(out, "{}", title(&image))?;
            }
        }
        ImageCommand::Pull { data, registries, auth_file, image } => {
            let config = RegistryConfig::load(registries).map_err(Error::msg)?;
            let mut keyring = Keyring::default();
            if let Some(file) = auth_file {
                let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                keyring.add_secret(&[(".dockerconfigjson".to_owned(), text)].into());
            }
            let puller = Puller::new(open(data)?, config, CredentialProviders::default());
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let pulled = runtime.block_on(puller.pull(image, &keyring))?;
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
