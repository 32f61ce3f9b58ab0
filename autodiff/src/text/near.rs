//! What a misspelt name may have meant.

/// Number of insertions, deletions and replacements between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// "; did you mean …?" with up to three near names, or the whole list if it is
/// a list worth reading and nothing is near.
pub(super) fn hint<'a>(word: &str, known: impl Iterator<Item = &'a str>, list_all: bool) -> String {
    let known: Vec<&str> = known.collect();
    // A distance is at least the difference in length, so far names cost nothing.
    let len = word.chars().count();
    let most = (len / 3).max(1);
    let mut near: Vec<(usize, &str)> = known
        .iter()
        .filter(|name| name.chars().count().abs_diff(len) <= most)
        .map(|&name| (distance(word, name), name))
        .filter(|&(d, _)| d <= most)
        .collect();
    near.sort();
    let near: Vec<String> = near
        .iter()
        .take(3)
        .map(|(_, name)| format!("`{name}`"))
        .collect();
    if !near.is_empty() {
        format!("; did you mean {}?", near.join(" or "))
    } else if list_all {
        format!("; there are: {}", known.join(", "))
    } else {
        String::new()
    }
}
