//! Names as Kubernetes has them, checked where they enter: they go into logs, paths and messages.

/// RFC 1123 label, as Kubernetes has it: 1 to 63 of `[a-z0-9-]`, no `-` at either end.
///
/// # Errors
/// Says what the text is not.
pub fn dns_label(text: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=63).contains(&text.len())
        && text.chars().all(fine)
        && !text.starts_with('-')
        && !text.ends_with('-')
    {
        return Ok(());
    }
    Err(format!("{text:?} is not a DNS label (1 to 63 of a-z, 0-9 and '-', no '-' at either end)"))
}

/// RFC 1123 subdomain, as Kubernetes has it: labels joined by dots, at most 253 characters.
///
/// # Errors
/// Says what the text is not.
pub fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(|label| dns_label(label).is_ok()) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a DNS name (at most 253 of a-z, 0-9, '-' and '.', as labels joined by dots)"
    ))
}

/// The key of a label, an annotation or a taint: `[PREFIX/]NAME`, the prefix a DNS name, the name 1 to 63 of
/// `[A-Za-z0-9._-]` with a letter or digit at both ends.
///
/// # Errors
/// Says what the text is not.
pub fn qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let end = |c: char| c.is_ascii_alphanumeric();
    if (1..=63).contains(&name.len())
        && name.chars().all(fine)
        && name.starts_with(end)
        && name.ends_with(end)
        && prefix.is_none_or(|prefix| dns_subdomain(prefix).is_ok())
    {
        return Ok(());
    }
    Err(format!("{text:?} is not a key ([PREFIX/]NAME, such as cni.istio.io/not-ready)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_the_api_server_takes() {
        for key in ["a", "A.b_c-1", "cni.istio.io/not-ready", "x/y"] {
            qualified_name(key).unwrap();
        }
        let long = "a".repeat(64);
        for key in ["", "/a", "a/", "a/b/c", "-a", "a-", "a b", "B/a", "a:NoExecute", "a=b", long.as_str()] {
            assert!(qualified_name(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn names_are_what_the_api_server_takes() {
        for (text, label, subdomain) in [
            ("a", true, true),
            ("web-0", true, true),
            ("a.b-c.d", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a..b", false, false),
            ("A", false, false),
            ("a\nb", false, false),
            ("a/b", false, false),
            ("é", false, false),
        ] {
            assert_eq!(
                (dns_label(text).is_ok(), dns_subdomain(text).is_ok()),
                (label, subdomain),
                "{text:?}"
            );
        }
        assert!(dns_label(&"a".repeat(63)).is_ok() && dns_label(&"a".repeat(64)).is_err());
        let long = vec!["a".repeat(63); 4].join(".");
        assert!(dns_subdomain(&long[..253]).is_ok() && dns_subdomain(&long).is_err());
    }
}
