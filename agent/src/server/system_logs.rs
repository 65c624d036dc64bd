//! `/logs/`: files below /var/log of the node, as Go's file server shows them.

use super::answer::{Answer, text, typed};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Longest file that is answered, bytes: more is cut.
const MAX_FILE: u64 = 64 << 20;

fn missing() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// What is at `path` below `root`; `path` is as in the request, after `/logs`.
pub async fn serve(root: PathBuf, path: String) -> Answer {
    let read = tokio::task::spawn_blocking(move || answer(&root, &path));
    read.await.unwrap_or_else(|e| text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

fn answer(root: &Path, path: &str) -> Answer {
    let relative = Path::new(path.trim_start_matches('/'));
    if relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return text(StatusCode::BAD_REQUEST, "invalid URL path\n");
    }
    // Links within the directory are followed, others are not.
    let (Ok(root), Ok(full)) = (root.canonicalize(), root.join(relative).canonicalize()) else {
        return missing();
    };
    if !full.starts_with(&root) {
        return missing();
    }
    if full.is_dir() {
        return if path.ends_with('/') { listing(&full) } else { slash(relative) };
    }
    let mut bytes = Vec::new();
    match File::open(&full).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => typed(StatusCode::OK, "text/plain; charset=utf-8", bytes),
        Err(_) => missing(),
    }
}

fn slash(path: &Path) -> Answer {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let target = if name.is_empty() { "logs/".to_owned() } else { format!("{name}/") };
    let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(target) = HeaderValue::try_from(target) {
        answer.headers_mut().insert(LOCATION, target);
    }
    answer
}

fn listing(dir: &Path) -> Answer {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| {
            let slash = if e.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", e.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let escape = |text: &str| {
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
    };
    let lines: String =
        names.iter().map(|n| format!("<a href=\"{}\">{}</a>\n", escape(n), escape(n))).collect();
    typed(StatusCode::OK, "text/html; charset=utf-8", format!("<pre>\n{lines}</pre>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn get(root: &Path, path: &str) -> (u16, String) {
        let answer = serve(root.to_owned(), path.to_owned()).await;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn files_and_directories_but_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("a.log"), "hello\n").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("escape")).unwrap();
        std::os::unix::fs::symlink("a.log", root.join("link")).unwrap();
        assert_eq!(get(&root, "/a.log").await, (200, "hello\n".to_owned()));
        assert_eq!(get(&root, "/link").await, (200, "hello\n".to_owned()));
        assert_eq!(get(&root, "/escape").await.0, 404);
        assert_eq!(get(&root, "/../secret").await.0, 400);
        assert_eq!(get(&root, "/none").await.0, 404);
        assert_eq!(get(&root, "/sub").await.0, 301);
        let (code, text) = get(&root, "/").await;
        assert_eq!(code, 200);
        assert!(text.contains("<a href=\"sub/\">sub/</a>\n"), "{text}");
    }
}
