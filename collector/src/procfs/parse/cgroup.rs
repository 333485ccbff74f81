//! `/proc/PID/cgroup`, cgroups(7): one line per hierarchy, `number:controllers:path`.

/// The path that tells services apart: of the unified hierarchy, unless that is unused beside an older one; then of
/// systemd's own; then of the first. `None` without any line of that form.
pub fn path(text: &[u8]) -> Option<&[u8]> {
    let mut unified = None;
    let mut systemd = None;
    let mut first = None;
    for line in text.split(|b| *b == b'\n') {
        let mut parts = line.splitn(3, |b| *b == b':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if number == b"0" && controllers.is_empty() {
            unified.get_or_insert(path);
        } else if controllers == b"name=systemd" {
            systemd.get_or_insert(path);
        }
        first.get_or_insert(path);
    }
    unified.filter(|path| *path != b"/").or(systemd).or(unified).or(first)
}

/// The path in the unified hierarchy (version 2). `None` where there is none.
pub fn unified(text: &[u8]) -> Option<&[u8]> {
    text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"0::"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_beside_well_formed() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(path(text.as_bytes()), expected.map(str::as_bytes), "{text:?}");
        };
        check("0::/system.slice/a:b.service\n", Some("/system.slice/a:b.service"));
        check("3:cpu,cpuacct:/x\n1:name=systemd:/system.slice/a\n0::/\n", Some("/system.slice/a"));
        check("1:name=systemd:/old\n0::/system.slice/a\n", Some("/system.slice/a"));
        check("0::/\n", Some("/"));
        check("4:memory:/x\n2:cpu:/y\n", Some("/x"));
        check("", None);
        check("nonsense\n0:\n", None);

        assert_eq!(unified(b"2:cpu:/x\n1:name=systemd:/y\n0::/a:b.service\n"), Some(&b"/a:b.service"[..]));
        assert_eq!(unified(b"2:cpu:/x\n"), None);
        assert_eq!(unified(b""), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = (path(&bytes), unified(&bytes));
        }
    }
}
