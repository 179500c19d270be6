//! What is said on the terminal.

use std::io::Write;

/// Says something to whoever started this. Nobody may be reading; that is no reason to stop.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The same on the side of logs and errors.
pub(crate) fn log(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Columns as wide as what is in them, indented as the rest of what is said.
pub(crate) fn indented<const N: usize>(
    header: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = rows.collect();
    let header = header.map(str::to_owned);
    let width = |at: usize| {
        let cells = rows.iter().chain([&header]).map(|row| row[at].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in [&header].into_iter().chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(&format!("  {}\n", line.trim_end()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["1", "127.0.0.1:7233", "meta"], ["22", "x", ""]];
        let rows = rows.into_iter().map(|row| row.map(str::to_owned));
        let text = indented(&["Node", "API", "Leads"], rows);
        let wanted = "  Node  API             Leads\n  1     127.0.0.1:7233  meta\n  22    x\n";
        assert_eq!(text, wanted);
    }
}
