//! Who came before whom, told from lists that transactions have read and appended to; and whether that goes in a circle.

use std::collections::HashMap;

/// What a committed transaction has seen and done.
#[derive(Debug, Clone, Default)]
pub(super) struct Done {
    /// Numbers of a counter that goes on whenever one begins or ends.
    pub(super) began: u64,
    pub(super) ended: u64,
    /// Keys, and the lists they had, without what it has appended itself.
    pub(super) read: Vec<(u8, Vec<u32>)>,
    /// Keys, and what was appended to their lists.
    pub(super) appended: Vec<(u8, u32)>,
}

/// Checks the transactions against one another and the lists that are there in the end. Returns how many edges there are.
pub(super) fn check(done: &[Done], last: &HashMap<u8, Vec<u32>>) -> Result<u64, String> {
    let mut writers = HashMap::new();
    for (at, own) in done.iter().enumerate() {
        for append in &own.appended {
            if writers.insert(*append, at).is_some() {
                return Err(format!("our bug: {append:?} was appended twice"));
            }
        }
    }
    let lasting: usize = last.values().map(Vec::len).sum();
    if lasting != writers.len() {
        return Err(format!("{} were appended, {lasting} are there", writers.len()));
    }
    let writer = |key: u8, id: u32| {
        writers.get(&(key, id)).copied().ok_or_else(|| format!("nobody has appended {id} to {key}"))
    };
    let mut edges: Vec<(usize, usize, &str)> = Vec::new();
    for (key, list) in last {
        for pair in list.windows(2) {
            edges.push((writer(*key, pair[0])?, writer(*key, pair[1])?, "wrote before"));
        }
    }
    let nothing = Vec::new();
    for (at, own) in done.iter().enumerate() {
        for (key, list) in &own.read {
            let all = last.get(key).unwrap_or(&nothing);
            if !all.starts_with(list) {
                return Err(format!("{own:?} has read what key {key} never had; it has {all:?}"));
            }
            if let Some(id) = list.last() {
                edges.push((writer(*key, *id)?, at, "was read by"));
            }
            if let Some(id) = all.get(list.len()) {
                edges.push((at, writer(*key, *id)?, "read before it was written by"));
            }
        }
    }
    for (at, own) in done.iter().enumerate() {
        let later = done.iter().enumerate().filter(|(_, other)| own.ended < other.began);
        edges.extend(later.map(|(other, _)| (at, other, "had ended before it began")));
    }
    edges.retain(|(from, to, _)| from != to);
    match circle(done.len(), &edges) {
        None => Ok(edges.len() as u64),
        Some(circle) => {
            let step = |(from, to, why): &(usize, usize, &str)| {
                format!("\n  {:?}\n    {why} {:?}", done[*from], done[*to])
            };
            Err(format!("a circle:{}", circle.iter().map(step).collect::<String>()))
        }
    }
}

/// Edges that lead back to where they began, if there are any.
fn circle<'a>(
    nodes: usize,
    edges: &[(usize, usize, &'a str)],
) -> Option<Vec<(usize, usize, &'a str)>> {
    // Those that nothing leads to can't be part of one; what is left when they are gone are circles and what they lead to.
    let mut incoming = vec![0; nodes];
    edges.iter().for_each(|(_, to, _)| incoming[*to] += 1);
    let mut free: Vec<usize> = (0..nodes).filter(|node| incoming[*node] == 0).collect();
    let mut is_gone = vec![false; nodes];
    while let Some(node) = free.pop() {
        is_gone[node] = true;
        for (_, to, _) in edges.iter().filter(|(from, ..)| *from == node) {
            incoming[*to] -= 1;
            if incoming[*to] == 0 {
                free.push(*to);
            }
        }
    }
    // Each that is left is led to by one that is left: backwards until one comes again.
    let mut way = vec![(0..nodes).find(|node| !is_gone[*node])?];
    loop {
        let to = way[way.len() - 1];
        let (from, ..) = edges.iter().find(|(from, at, _)| *at == to && !is_gone[*from])?;
        if let Some(start) = way.iter().position(|node| node == from) {
            let mut around: Vec<usize> = way[start..].to_vec();
            around.reverse();
            around.insert(0, *around.last()?);
            let edge =
                |pair: &[usize]| edges.iter().find(|(from, to, _)| [*from, *to] == *pair).copied();
            return around.windows(2).map(edge).collect();
        }
        way.push(*from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(at: u64, read: &[(u8, &[u32])], appended: &[(u8, u32)]) -> Done {
        let read = read.iter().map(|(key, list)| (*key, list.to_vec())).collect();
        Done { began: at, ended: at + 10, read, appended: appended.to_vec() }
    }

    fn lists(lists: &[(u8, &[u32])]) -> HashMap<u8, Vec<u32>> {
        lists.iter().map(|(key, list)| (*key, list.to_vec())).collect()
    }

    #[test]
    fn what_is_in_order_passes() {
        let all = [
            done(0, &[], &[(1, 10)]),
            done(1, &[(1, &[10]), (2, &[])], &[(2, 20)]),
            done(2, &[(1, &[]), (2, &[])], &[]),
        ];
        assert!(check(&all, &lists(&[(1, &[10]), (2, &[20])])).is_ok());
    }

    #[test]
    fn write_skew_is_a_circle() {
        let all = [
            done(0, &[(1, &[]), (2, &[])], &[(1, 10)]),
            done(1, &[(1, &[]), (2, &[])], &[(2, 20)]),
        ];
        let found = check(&all, &lists(&[(1, &[10]), (2, &[20])])).unwrap_err();
        assert!(
            found.starts_with("a circle") && found.matches("read before").count() == 2,
            "{found}"
        );
    }

    #[test]
    fn a_stale_read_is_a_circle() {
        let late = Done { began: 20, ended: 30, ..done(0, &[(1, &[])], &[]) };
        let found = check(&[done(0, &[], &[(1, 10)]), late], &lists(&[(1, &[10])])).unwrap_err();
        assert!(found.contains("had ended before it began"), "{found}");
    }

    #[test]
    fn lost_and_torn_appends_are_found() {
        let two = [done(0, &[], &[(1, 10)]), done(1, &[], &[(1, 11)])];
        assert!(check(&two, &lists(&[(1, &[11])])).unwrap_err().contains("2 were appended, 1"));
        let torn = [two[0].clone(), done(1, &[(1, &[11])], &[(1, 11)])];
        assert!(check(&torn, &lists(&[(1, &[10, 11])])).unwrap_err().contains("never had"));
    }
}
