namespace tq4 {}
