//! Where a server is asked.
//!
//! What lives here: from what people type to the address of its registry. What does not: asking
//! (`fetch`).

use ureq::http::Uri;

use crate::escape::clean;
use crate::failure::Failure;

const PATH: &str = "/v1/registry";

/// `host:port` or `http://host:port/prefix`, with the path of the registry.
pub(super) fn of_registry(typed: &str) -> Result<String, Failure> {
    let wrong = |reason: &str| Failure::usage(format!("{}: {reason}", clean(typed)));
    let full = if typed.contains("://") {
        typed.to_owned()
    } else {
        format!("http://{typed}")
    };
    let uri: Uri = full
        .parse()
        .map_err(|_| wrong("is no address; expected something like http://127.0.0.1:8000"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(wrong(
                "https is not spoken here. Ask over http on the server's own host, or through a tunnel",
            ));
        }
        _ => return Err(wrong("expected an address that begins with http://")),
    }
    let authority = uri.authority().filter(|of| !of.host().is_empty());
    let authority = authority.ok_or_else(|| wrong("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("has a user or a password in it; use --token"));
    }
    if uri.query().is_some() {
        return Err(wrong("has a query; expected the address of a server"));
    }
    let prefix = uri.path().trim_end_matches('/');
    let path = if prefix.ends_with(PATH) { "" } else { PATH };
    Ok(format!("http://{authority}{prefix}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_leads_to_the_registry() {
        for typed in [
            "127.0.0.1:8000",
            "http://127.0.0.1:8000",
            "http://127.0.0.1:8000/",
            "HTTP://127.0.0.1:8000/v1/registry",
        ] {
            let url = of_registry(typed).unwrap();
            assert_eq!(url, "http://127.0.0.1:8000/v1/registry", "{typed}");
        }
        let url = of_registry("http://[::1]:80/models/a/").unwrap();
        assert_eq!(url, "http://[::1]:80/models/a/v1/registry");
    }

    #[test]
    fn what_is_no_address_is_refused_without_asking_anybody() {
        for (typed, word) in [
            ("", "address"),
            ("https://host", "https"),
            ("ftp://host", "http://"),
            ("http://", "address"),
            ("http://user:secret@host", "--token"),
            ("http://host/?a=b", "query"),
            ("http://host\u{1b}[2J", "\\u{1b}"),
        ] {
            let told = of_registry(typed).unwrap_err().to_string();
            assert!(told.contains(word), "{typed:?}: {told}");
        }
    }
}
