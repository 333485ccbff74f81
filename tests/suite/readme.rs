//! The README says what the program does: its table of metrics, its flags and its example configuration.

use collector::kernel::support::OLDEST_LINUX;
use collector::render::prometheus::{Format, Group, Groups, families};

use crate::support::collector_command;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const BEGIN: &str = "<!-- metrics: renewed by BLESS=1 cargo test -p collector --test suite -->\n";
const END: &str = "<!-- end of metrics -->\n";

#[test]
fn the_table_of_metrics_is_complete() {
    let mut table = String::from("| metric | group | type | labels | |\n|---|---|---|---|---|\n");
    for family in families() {
        table += &format!(
            "| `{}` | `{}` | {} | {} | {} |\n",
            family.name,
            family.group.as_str(),
            family.kind.as_str(Format::OpenMetrics),
            family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" "),
            family.help.replace('|', "\\|")
        );
    }
    let readme = std::fs::read_to_string(README).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(README, [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    assert_eq!(written, table, "renew it with BLESS=1");
}

/// Groups that the README calls the default.
#[test]
fn the_default_groups_are_told() {
    let readme = std::fs::read_to_string(README).unwrap();
    let names: Vec<&str> = Group::ALL
        .into_iter()
        .filter(|group| Groups::default().contains(*group))
        .map(Group::as_str)
        .collect();
    assert!(readme.contains(&format!("collect: [{}]", names.join(", "))), "{names:?}");
}

#[test]
fn every_flag_is_in_the_readme() {
    let readme = std::fs::read_to_string(README).unwrap();
    let help = String::from_utf8(collector_command(&["--help"]).output().unwrap().stdout).unwrap();
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("--"))
        .map(|line| line.split([' ', '=']).next().unwrap_or_default())
        .collect();
    assert!(flags.contains(&"web.listen-address"), "{flags:?}");
    for flag in flags {
        assert!(readme.contains(&format!("`--{flag}`")), "--{flag} is missing");
    }
}

#[test]
fn the_oldest_kernel_is_the_one_of_the_remedies() {
    let readme = std::fs::read_to_string(README).unwrap();
    let stated: Vec<&str> = readme
        .split("Linux ")
        .filter_map(|rest| rest.split_once(" or newer with BTF").map(|(v, _)| v))
        .collect();
    assert_eq!(stated, [OLDEST_LINUX]);
}

#[test]
fn the_example_configuration_is_valid() {
    let readme = std::fs::read_to_string(README).unwrap();
    let example = readme
        .split("```yaml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.contains("pools:"))
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("collector.yml");
    std::fs::write(&path, example).unwrap();
    let output = collector_command(&["check-config", path.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
