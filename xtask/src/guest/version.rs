//! Kernel packages by their names: which one is meant by a version, and which is newest.

/// The kernels that `--kernel all` means: the oldest that Kelp supports, those of Debian's releases, a long-term one
/// and the newest there is.
pub const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", NEWEST];

/// The newest kernel that is offered.
pub const NEWEST: &str = "newest";

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

/// The release in the name of a package with a kernel (`6.12.117+deb13-cloud-amd64`); nothing for packages that only
/// depend on one, and for debug symbols and unsigned copies.
pub fn release_of(package: &str) -> Option<&str> {
    let release = package.strip_prefix(PREFIX)?;
    let version = release.strip_suffix(SUFFIX)?;
    // `6.12-cloud-amd64` depends on the newest 6.12.
    (version.matches('.').count() >= 2 && version.starts_with(|c: char| c.is_ascii_digit()))
        .then_some(release)
}

/// The package of a release.
pub fn package_of(release: &str) -> String {
    format!("{PREFIX}{release}")
}

/// The newest of these releases that `version` means: `6.12`, `6.12.90` or [`NEWEST`].
pub fn choose<'a>(releases: impl IntoIterator<Item = &'a str>, version: &str) -> Option<&'a str> {
    let means = |release: &str| {
        let rest = release.strip_prefix(version);
        version == NEWEST || rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    releases.into_iter().filter(|release| means(release)).max_by_key(|release| numbers(release))
}

/// The versions that these releases offer (`6.12`), in order.
pub fn offered<'a>(releases: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut versions: Vec<(u64, u64)> = releases
        .into_iter()
        .filter_map(|release| match numbers(release).as_slice() {
            [major, minor, ..] => Some((*major, *minor)),
            _ => None,
        })
        .collect();
    versions.sort_unstable();
    versions.dedup();
    versions.into_iter().map(|(major, minor)| format!("{major}.{minor}")).collect()
}

/// The numbers in a name.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGES: [&str; 10] = [
        "linux-image-6.12-cloud-amd64",
        "linux-image-cloud-amd64",
        "linux-image-6.12.90+deb12-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64",
        "linux-image-6.12.117+deb13-cloud-amd64",
        "linux-image-6.12.117+deb13-cloud-amd64-unsigned",
        "linux-image-6.1.0-0.deb11.52-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64-dbg",
        "linux-image-5.10.0-9-cloud-amd64",
    ];

    fn releases() -> Vec<&'static str> {
        PACKAGES.iter().filter_map(|package| release_of(package)).collect()
    }

    #[test]
    fn the_newest_package_of_a_version_is_chosen() {
        let choose = |version| choose(releases(), version);
        assert_eq!(choose("6.12"), Some("6.12.117+deb13-cloud-amd64"));
        assert_eq!(choose("6.12.90"), Some("6.12.90+deb12-cloud-amd64"));
        assert_eq!(
            choose("6.1"),
            Some("6.1.0-56-cloud-amd64"),
            "6.1 is not 6.12, nor a backport's older build"
        );
        assert_eq!(choose("5.10"), Some("5.10.0-9-cloud-amd64"));
        assert_eq!(choose(NEWEST), Some("6.12.117+deb13-cloud-amd64"));
        assert_eq!(choose("6.2"), None);
        assert_eq!(choose("6.12.9"), None);
    }

    #[test]
    fn only_packages_with_a_kernel_are_offered() {
        assert_eq!(releases().len(), 6);
        assert_eq!(offered(releases()), ["5.10", "6.1", "6.12"]);
        assert_eq!(package_of(releases()[0]), PACKAGES[2]);
    }
}
