//! Rows for people.
use std::fmt;

use super::{Owner, Row};

/// Sockets as a table: a line each, options on the line below.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a [Row]);

const HEADER: [&str; 8] = [
    "KIND", "STATE", "RECV-Q", "SEND-Q", "LOCAL", "PEER", "PROCESS", "FATE",
];

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![HEADER.map(str::to_owned)];
        lines.extend(self.0.iter().map(cells));
        let widths: Vec<usize> = (0..HEADER.len() - 1)
            .map(|column| {
                let cells = lines.iter().map(|line| line[column].chars().count());
                cells.max().unwrap_or(0)
            })
            .collect();
        let mut options = self.0.iter().map(|row| &row.options);
        for (i, line) in lines.iter().enumerate() {
            for (cell, width) in line.iter().zip(&widths) {
                write!(f, "{cell:<width$}  ")?;
            }
            writeln!(f, "{}", line[HEADER.len() - 1])?;
            let told = (i > 0).then(|| options.next()).flatten();
            if let Some(told) = told.filter(|told| !told.is_empty()) {
                let all: Vec<String> = told.iter().map(|(k, v)| format!("{k}={v}")).collect();
                writeln!(f, "    {}", all.join(" "))?;
            }
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 8] {
    let or_star = |text: &str| if text.is_empty() { "*" } else { text }.to_owned();
    [
        row.kind.to_string(),
        row.state.to_string(),
        row.rqueue.to_string(),
        row.wqueue.to_string(),
        or_star(&row.local),
        or_star(&row.peer),
        owners(&row.owners),
        row.fate.to_string(),
    ]
}

/// `812/7,9 813/7`: the descriptors of each process.
fn owners(owners: &[Owner]) -> String {
    let mut text = String::new();
    let mut last = None;
    for owner in owners {
        if last == Some(owner.pid) {
            text.push_str(&format!(",{}", owner.fd));
        } else {
            let space = if text.is_empty() { "" } else { " " };
            text.push_str(&format!("{space}{}/{}", owner.pid, owner.fd));
        }
        last = Some(owner.pid);
    }
    if text.is_empty() {
        text.push_str("no fd");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{Class, Fate, Kind, State};

    #[test]
    fn a_row_is_a_line_and_its_options_another() {
        let row = |owners: &[(i32, i32)], options: &[(&str, &str)]| Row {
            kind: Kind::Tcp,
            state: State::CloseWait,
            local: "192.0.2.10:80".into(),
            peer: String::new(),
            inode: 1,
            owners: owners.iter().map(|&(pid, fd)| Owner { pid, fd }).collect(),
            rqueue: 12,
            wqueue: 0,
            options: options
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            class: Class::TcpCloseWait,
            fate: Fate::MovesWithout(vec!["ECN".into()]),
        };
        let rows = [
            row(&[(7, 3), (7, 5), (8, 3)], &[("TCP_NODELAY", "1")]),
            row(&[], &[]),
        ];
        let text = Table(&rows).to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "KIND  STATE       RECV-Q  SEND-Q  LOCAL          PEER  PROCESS    FATE",
                "tcp   close-wait  12      0       192.0.2.10:80  *     7/3,5 8/3  moves without ECN",
                "    TCP_NODELAY=1",
                "tcp   close-wait  12      0       192.0.2.10:80  *     no fd      moves without ECN",
            ]
        );
    }
}
