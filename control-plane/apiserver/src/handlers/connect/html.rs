//! Links within HTML that is proxied, made to lead through the proxy.

use super::rewrite::Rewriter;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder};
use futures::stream::{BoxStream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use lol_html::html_content::Element;
use lol_html::send::{ElementContentHandlers, HtmlRewriter, Settings};
use lol_html::{MemorySettings, Selector};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;

/// Attributes that hold addresses, by element. Source: HTML 4.01's index of attributes and HTML's; as upstream.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Memory that a page may make the rewriter hold, in bytes: a tag is kept until it is complete.
const MEMORY: usize = 1 << 20;

/// Whether the answer is a page whose coding is known; others are passed on as they are.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html") && Coder::of(headers).is_some()
}

/// The page with its links rewritten. It breaks off where it cannot be read.
pub(super) fn rewritten(
    headers: &HeaderMap,
    page: BoxStream<'static, Bytes>,
    rewriter: Rewriter,
) -> BoxStream<'static, Bytes> {
    let Some(coder) = Coder::of(headers) else { return page };
    let state = (page, Some(Page::new(coder, rewriter)));
    let pieces = futures::stream::unfold(state, |(mut page, rest)| async move {
        let mut this = rest?;
        let (piece, rest) = match page.next().await {
            Some(piece) => (this.piece(&piece), Some(this)),
            None => (this.end(), None),
        };
        match piece {
            Ok(piece) => Some((piece, (page, rest))),
            Err(error) => {
                tracing::debug!(%error, "a proxied page cannot be rewritten");
                None
            }
        }
    });
    pieces.filter(|piece| std::future::ready(!piece.is_empty())).boxed()
}

/// One direction of a coding: a stream that takes bytes and gives others.
trait Stage: Send {
    /// Passes a piece through; the last one with all that was held back.
    fn pass(&mut self, piece: &[u8], last: bool) -> io::Result<Vec<u8>>;
}

macro_rules! stages {
    ($($stage:ident),*) => {$(
        impl Stage for $stage<Vec<u8>> {
            fn pass(&mut self, piece: &[u8], last: bool) -> io::Result<Vec<u8>> {
                self.write_all(piece)?;
                if last { self.try_finish()? } else { self.flush()? }
                Ok(std::mem::take(self.get_mut()))
            }
        }
    )*};
}

stages!(GzDecoder, GzEncoder, DeflateDecoder, DeflateEncoder);

/// The coding of a page, undone before and done again after its links are rewritten; `None`: it has none.
struct Coder(Option<(Box<dyn Stage>, Box<dyn Stage>)>);

impl Coder {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let (none, level) = (Vec::new, Compression::fast());
        match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"") => Some(Self(None)),
            Some(b"gzip") => {
                Some(Self(Some((Box::new(GzDecoder::new(none())), Box::new(GzEncoder::new(none(), level))))))
            }
            Some(b"deflate") => {
                let encoder = DeflateEncoder::new(none(), level);
                Some(Self(Some((Box::new(DeflateDecoder::new(none())), Box::new(encoder)))))
            }
            Some(_) => None,
        }
    }

    fn decode<'a>(&mut self, coded: &'a [u8], last: bool) -> io::Result<Cow<'a, [u8]>> {
        match &mut self.0 {
            None => Ok(Cow::Borrowed(coded)),
            Some((decoder, _)) => decoder.pass(coded, last).map(Cow::Owned),
        }
    }

    fn encode(&mut self, plain: Vec<u8>, last: bool) -> io::Result<Vec<u8>> {
        match &mut self.0 {
            None => Ok(plain),
            Some((_, encoder)) => encoder.pass(&plain, last),
        }
    }
}

type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// A page under way.
struct Page {
    coder: Coder,
    html: HtmlRewriter<'static, Sink>,
    /// What the rewriter has put out.
    out: Arc<Mutex<Vec<u8>>>,
}

impl Page {
    fn new(coder: Coder, rewriter: Rewriter) -> Self {
        let out = Arc::new(Mutex::new(Vec::new()));
        let rewriter = Arc::new(rewriter);
        let handlers = ATTRIBUTES.iter().filter_map(|(tag, attributes)| {
            let rewriter = rewriter.clone();
            let selector: Selector = tag.parse().ok()?;
            let handler = move |element: &mut Element<'_, '_, lol_html::send::SendHandlerTypes>| {
                for attribute in *attributes {
                    let Some(address) = element.get_attribute(attribute) else { continue };
                    let through = rewriter.rewrite(&address);
                    if through != address {
                        element.set_attribute(attribute, &through)?;
                    }
                }
                Ok(())
            };
            Some((Cow::Owned(selector), ElementContentHandlers::default().element(handler)))
        });
        let memory = MemorySettings::new()
            .with_max_allowed_memory_usage(MEMORY)
            .with_graceful_bail_out_on_memory_limit_exceeded(true);
        // Pages that are no proper HTML are passed on as far as they are understood.
        let settings = Settings::new_send().with_memory_settings(memory).with_strict(false);
        let settings =
            handlers.fold(settings, |settings, handler| settings.append_element_content_handler(handler));
        let sink = out.clone();
        let sink: Sink = Box::new(move |piece: &[u8]| sink.lock().extend_from_slice(piece));
        Self { coder, html: HtmlRewriter::new(settings, sink), out }
    }

    fn piece(&mut self, coded: &[u8]) -> io::Result<Bytes> {
        let plain = self.coder.decode(coded, false)?;
        self.html.write(&plain).map_err(io::Error::other)?;
        let rewritten = std::mem::take(&mut *self.out.lock());
        Ok(self.coder.encode(rewritten, false)?.into())
    }

    fn end(mut self) -> io::Result<Bytes> {
        let plain = self.coder.decode(&[], true)?;
        self.html.write(&plain).map_err(io::Error::other)?;
        self.html.end().map_err(io::Error::other)?;
        let rewritten = std::mem::take(&mut *self.out.lock());
        Ok(self.coder.encode(rewritten, true)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read;
    use http::HeaderValue;
    use std::io::Read;

    const PREFIX: &str = "/api/v1/namespaces/n/pods/p/proxy";

    fn headers(coding: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        if !coding.is_empty() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        headers
    }

    /// A page in pieces of some bytes each, through the proxy.
    async fn through(coding: &'static str, page: &[u8], size: usize) -> Vec<u8> {
        let headers = headers(coding);
        assert!(is_page(&headers));
        let rewriter = Rewriter::new(&format!("{PREFIX}/a/"), "/a/", "10.0.0.1:80".to_owned(), &headers);
        let pieces: Vec<Bytes> = page.chunks(size).map(Bytes::copy_from_slice).collect();
        let out = rewritten(&headers, futures::stream::iter(pieces).boxed(), rewriter);
        out.collect::<Vec<_>>().await.concat()
    }

    #[tokio::test]
    async fn links_lead_through_the_proxy() {
        let page = "<!doctype html><a href=\"/x?y=1\">/x</a><a href='z'><IMG src=/i.png alt=\"/i.png\">\
            <script>var a = '<a href=\"/no\">';</script><a href=\"http://other.test/\"></a><!-- <a href=\"/c\"> -->";
        let expected = format!(
            "<!doctype html><a href=\"{PREFIX}/x?y=1\">/x</a><a href='z'><IMG src=\"{PREFIX}/i.png\" alt=\"/i.png\">\
            <script>var a = '<a href=\"/no\">';</script><a href=\"http://other.test/\"></a><!-- <a href=\"/c\"> -->"
        );
        for size in [1, 7, 1000] {
            let out = through("", page.as_bytes(), size).await;
            assert_eq!(String::from_utf8_lossy(&out), expected, "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_coded_page_stays_coded() {
        let page = b"<a href=\"/x\">x</a>";
        let expected = format!("<a href=\"{PREFIX}/x\">x</a>");
        let (mut gzip, mut deflate) = (Vec::new(), Vec::new());
        read::GzEncoder::new(&page[..], Compression::fast()).read_to_end(&mut gzip).expect("gzip");
        read::DeflateEncoder::new(&page[..], Compression::fast()).read_to_end(&mut deflate).expect("deflate");
        for size in [1, 1000] {
            let mut text = String::new();
            let out = through("gzip", &gzip, size).await;
            read::GzDecoder::new(&out[..]).read_to_string(&mut text).expect("gzip");
            assert_eq!(text, expected);
            let out = through("deflate", &deflate, size).await;
            let mut text = String::new();
            read::DeflateDecoder::new(&out[..]).read_to_string(&mut text).expect("deflate");
            assert_eq!(text, expected);
        }
        let broken = through("gzip", b"no gzip at all", 5).await;
        let read = read::GzDecoder::new(&broken[..]).read_to_string(&mut String::new());
        assert!(read.is_err(), "it breaks off: {broken:?}");
    }

    #[test]
    fn other_answers_stay_what_they_are() {
        let mut other = headers("br");
        assert!(!is_page(&other));
        other.remove(CONTENT_ENCODING);
        other.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert!(!is_page(&other));
    }
}
