//! What the system says of this process. Where there is no `/proc`, it says nothing, and nothing is
//! checked.

use std::fs;

/// Anonymous memory that is resident, in bytes.
pub fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Names of the threads, sorted.
pub fn threads() -> Option<Vec<String>> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
    names.sort();
    Some(names)
}

/// What the open file descriptors lead to, sorted, without the one that this look opens.
pub fn files() -> Option<Vec<String>> {
    let entries = fs::read_dir("/proc/self/fd").ok()?;
    let places = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let places = places.map(|place| place.display().to_string());
    let mut places: Vec<String> = places.filter(|place| !place.ends_with("/fd")).collect();
    places.sort();
    Some(places)
}
